"""The cells of the report's tables as text, for Markdown and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from batch_renorm.reporting.compare import SHARES, CheckResult, Comparison, Row
from batch_renorm.reporting.paper import VAL, Claim, Series
from batch_renorm.reporting.recorded import Sample

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Table:
    title: str
    text: str  # how to read it
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def accuracy(sample: Sample | None) -> str:
    """Mean and sample standard deviation, in percent."""
    if sample is None:
        return NONE
    return f"{sample.mean:.1f}" + (f" ± {sample.std:.1f}" if sample.std is not None else "")


def points(value: float | None, digits: int = 1) -> str:
    # + 0.0 turns a rounded -0.0 into 0.0.
    return NONE if value is None else f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", MINUS)


def difference(sample: Sample | None, digits: int = 1) -> str:
    """Mean and 95% interval, in points."""
    if sample is None:
        return NONE
    interval = f" ({' to '.join(points(end, digits) for end in sample.interval)})" if sample.interval else ""
    return points(sample.mean, digits) + interval


def _count(sample: Sample | None) -> str:
    return str(sample.n if sample else 0)


def steps(value: float) -> str:
    return f"{value / 1000:.1f}k".replace(".0k", "k") if value >= 10_000 else f"{value:.0f}"


def needed(claim: Claim) -> str:
    """The claim as a formula, for instance "iid_renorm - iid_batchnorm ≥ -1", with minus signs."""

    def name(series: Series) -> str:
        experiment, metric = series
        return experiment if metric == VAL else f"{experiment} ({metric.removeprefix('val_top1_')})"

    sides = f"{name(claim.left)} {MINUS} {name(claim.right)}"
    if claim.relation == "=":
        return f"|{sides}| ≤ {claim.margin:g}"
    low = f"{claim.range()[0] + 0.0:g}".replace("-", MINUS) if claim.margin else "0"
    return f"{sides} {'≥' if claim.relation == '>=' else '>'} {low}"


def in_short(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, more than three in a row by the first and the last: "0 to 19"."""
    series: list[list[int]] = []
    for number in numbers:
        if series and number == series[-1][-1] + 1:
            series[-1].append(number)
        else:
            series.append([number])
    return ", ".join(f"{s[0]} to {s[-1]}" if len(s) > 3 else ", ".join(map(str, s)) for s in series)


def _seeds(row: Row) -> str:
    parts = [in_short(row.seeds)] if row.seeds else []
    parts += [
        f"{run.seed} ({run.state}, {run.step / run.steps:.0%})" if run.steps else f"{run.seed} ({run.progress})"
        for run in row.unfinished
    ]
    return "; ".join(parts) or NONE


def reach(row: Row, i: int) -> str:
    """Steps to reach the i-th threshold: ours / the paper's."""
    ours, theirs = NONE, row.published_reach[i]
    if row.reach and row.seeds:
        reached = row.reach[i]
        ours = steps(fmean(reached)) if reached else "never"
        if reached and len(reached) < len(row.seeds):
            ours += f" ({len(reached)} of {len(row.seeds)} seeds)"
    return f"{ours} / {'never' if theirs is None else steps(theirs)}"


def measured(result: CheckResult) -> str:
    """Mean and 95% interval of a check's values, in its unit."""
    if result.values is None:
        return NONE
    digits, unit = (3, "") if not result.check.unit else (1, result.check.unit)
    mean = result.values.mean
    if unit == "%":  # a fraction: its range over the seeds, because an interval would go below zero
        low, high = result.values.range
        digits = 2 if mean < 1 else 1
        return f"{mean:.{digits}f}%" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low < high else "")
    return difference(result.values, digits)


def accuracy_table(c: Comparison) -> Table:
    on_imagenet = c.scale == "imagenet"
    beside = c.data is None  # the paper has no numbers for another data set
    head = ["", "seeds", "final", "range", "best"] + ["paper"] * beside + ["gap"] * on_imagenet
    head += ["to baseline: ours", "to baseline: paper", "minutes a run"]
    rows = []
    for row in c.rows:
        spread = f"{row.final.range[0]:.1f} to {row.final.range[1]:.1f}" if row.final else NONE
        cells = [row.label, _seeds(row), accuracy(row.final), spread, accuracy(row.best)]
        cells += [f"{row.published:.1f}" if row.published else NONE] * beside + [points(row.gap)] * on_imagenet
        cells += [difference(row.to_baseline), points(row.published_to_baseline)]
        rows.append((*cells, f"{row.minutes:.1f}" if row.minutes else NONE))
    data = "The same data set as the paper's: *gap* is best minus published, in points."
    if not on_imagenet:
        data = (
            f"{'Another data set' if beside else f'The data set {c.data}, another'} than the paper's ImageNet: compare "
            "*to baseline* and the shapes of the curves, not the accuracies themselves."
        )
    text = (
        "Top-1 in percent of the inference model. *final* is the last evaluation, *best* the best one: mean ± "
        "standard deviation over the finished seeds. The paper prints best values. *to baseline* is the difference "
        f"of *best* to batchnorm on i.i.d. minibatches, seed by seed, with its mean's 95% t-interval. {data}"
    )
    return Table("Accuracy", text, tuple(head), tuple(rows))


def ordering_table(c: Comparison) -> Table:
    rows = []
    for r in c.claims:
        finals = difference(r.final), points(r.published_final)
        bests = points(r.best.mean if r.best else None), points(r.published)
        rows.append((r.claim.text, needed(r.claim), *finals, *bests, _count(r.final), r.verdict))
    text = (
        "Each is decided by the mean difference of *final* over the seeds that both sides have. *holds*: the whole "
        "95% t-interval agrees (two-sided, paired by seed); *holds, not sure*: the mean does, the interval does "
        "not, or there is one seed only; *does not hold*: the mean contradicts the claim. *paper* is where the "
        "paper's curves end. The columns *best* are differences of best values, which the paper prints."
    )
    head = ("claim", "needed", "ours (95% interval)", "paper", "ours, best", "paper, best", "seeds", "verdict")
    return Table("The paper's orderings", text, head, tuple(rows))


def check_table(c: Comparison) -> Table:
    rows = [
        (r.check.text, r.check.needed, measured(r), r.check.published or NONE, _count(r.values), r.verdict)
        for r in c.checks
    ]
    text = (
        "Decided as above. Fractions are means over the last tenth of the steps, with the least and largest seed; the "
        'paper says "a small fraction" of the r, which we take as 10% at most, and none of the d. A fall is from a '
        "curve's best value to its last. *activation distance*: relative L2 distance between a norm layer's output "
        "in training mode and at inference on the same validation images, mean over layers, at the end; the paper "
        "argues with it and gives no number."
    )
    head = ("claim", "needed", "ours", "paper", "seeds", "verdict")
    return Table("Smaller claims", text, head, tuple(rows))


def group_table(c: Comparison) -> Table:
    """What the rest of a minibatch tells a network about an image: every experiment's accuracies by minibatch."""
    rows = [
        (r.label, accuracy(r.final), accuracy(r.pairs), accuracy(r.alone), difference(r.counterpart_gain))
        for r in c.rows
        if r.series[1] == VAL
    ]
    text = (
        "*final* accuracies of the same weights. *averages*: normalised with mu and sigma, the usual evaluation. "
        "*pairs*: with muB and sigmaB of minibatches that hold two images of each label. *each label once*: likewise, "
        "of minibatches in which no image has a counterpart. *a counterpart is worth*: pairs minus each label once, "
        "seed by seed, with its mean's 95% t-interval. The paper suspects that batchnorm on pairs "
        '"learns to predict labels for images that come in a set".'
    )
    head = ("", "averages", "pairs", "each label once", "a counterpart is worth")
    return Table("What the group tells", text, head, tuple(rows))


def reach_table(c: Comparison) -> Table:
    text = (
        "ours / paper: steps until the curve first reaches a share of the baseline's best accuracy (each its own "
        "baseline), mean over the seeds that do. *never*: not within the curve."
    )
    ours = c.thresholds or (None,) * len(SHARES)
    head = [
        f"{share:.0%}: {f'{own:.1f}' if own else NONE} / {theirs:.1f}"
        for share, own, theirs in zip(SHARES, ours, c.published_thresholds, strict=True)
    ]
    rows = [(row.label, *(reach(row, i) for i in range(len(SHARES)))) for row in c.rows]
    return Table("Steps to an accuracy", text, ("", *head), tuple(rows))


def tables(c: Comparison) -> list[Table]:
    return [accuracy_table(c), ordering_table(c), check_table(c), group_table(c), reach_table(c)]
