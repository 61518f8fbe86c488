"""The cells of the report's tables as text, for Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batch_renorm.reporting.compare import CheckResult, Comparison, Row
from batch_renorm.reporting.paper import VAL, Claim, Series
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.reporting.samples import Sample

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


def difference(sample: Sample | None) -> str:
    """Mean and 95% interval, in points."""
    if sample is None:
        return NONE
    if sample.interval is None:
        return points(sample.mean)
    return f"{points(sample.mean)} ({points(sample.interval[0])} to {points(sample.interval[1])})"


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


def progress(run: RecordedRun) -> str:
    """The progress of a run, for instance 40%."""
    return f"{run.step / run.steps:.0%}" if run.steps else f"step {run.step}"


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
    parts += [f"{run.seed} ({run.state}, {progress(run)})" for run in row.unfinished]
    return "; ".join(parts) or NONE


def final(row: Row) -> str:
    """The finished seeds' mean; if there are none, the progress of the others."""
    if row.final or not row.unfinished:
        return accuracy(row.final)
    now = [value for run in row.unfinished if (value := run.final(row.series[1])) is not None]
    return f"({Sample(tuple(now)).mean:.1f} so far)" if now else NONE


def reach(row: Row, i: int) -> tuple[str, str]:
    """Steps to reach the i-th threshold: ours, the paper's."""
    ours = NONE
    if row.reach and row.seeds:
        reached = row.reach[i]
        ours = steps(sum(reached) / len(reached)) if reached else "never"
        if reached and len(reached) < len(row.seeds):
            ours += f" ({len(reached)} of {len(row.seeds)} seeds)"
    theirs = row.published_reach[i]
    return ours, "never" if theirs is None else steps(theirs)


def measured(result: CheckResult) -> str:
    """Mean and 95% interval of a check's values, in its unit."""
    if result.values is None:
        return NONE
    digits, unit = (3, "") if not result.check.unit else (1, result.check.unit)
    mean, interval = result.values.mean, result.values.interval
    if unit == "%":  # a fraction: its range over the seeds, because an interval would go below zero
        low, high = result.values.range
        digits = 2 if mean < 1 else 1
        return f"{mean:.{digits}f}%" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low < high else "")
    return points(mean, digits) + (
        f" ({points(interval[0], digits)} to {points(interval[1], digits)})" if interval else ""
    )


def accuracy_table(c: Comparison) -> Table:
    on_imagenet = c.scale == "imagenet"
    beside = c.data is None  # the paper has no numbers for another data set
    head = ["", "seeds", "final", "range", "best"] + ["paper"] * beside + ["gap"] * on_imagenet
    head += ["to baseline: ours", "to baseline: paper", "minutes a run"]
    rows = []
    for row in c.rows:
        spread = f"{row.final.range[0]:.1f} to {row.final.range[1]:.1f}" if row.final else NONE
        cells = [row.label, _seeds(row), final(row), spread, accuracy(row.best)]
        cells += [f"{row.published:.1f}" if row.published else NONE] * beside + [points(row.gap)] * on_imagenet
        cells += [difference(row.to_baseline), points(row.published_to_baseline)]
        rows.append((*cells, f"{row.minutes:.1f}" if row.minutes else NONE))
    other = "Another data set" if beside else f"The data set {c.data}, another"
    data = (
        "The same data set as the paper's: *gap* is best minus published, in points."
        if on_imagenet
        else f"{other} than the paper's ImageNet: compare *to baseline* and the shapes of the curves, not the "
        "accuracies themselves."
    )
    text = (
        "Top-1 in percent of the inference model. *final* is the last evaluation, *best* the best one: mean ± "
        "standard deviation over the finished seeds. The paper prints best values. *to baseline* is the difference "
        f"of *best* to batchnorm on i.i.d. minibatches, seed by seed, with its mean's 95% t-interval. {data}"
    )
    return Table("Accuracy", text, tuple(head), tuple(rows))


def ordering_table(c: Comparison) -> Table:
    rows = [
        (
            r.claim.text,
            needed(r.claim),
            difference(r.final),
            points(r.published_final),
            points(r.best.mean) if r.best else NONE,
            points(r.published),
            str(r.final.n if r.final else 0),
            r.verdict,
        )
        for r in c.claims
    ]
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
        (
            r.check.text,
            r.check.needed,
            measured(r),
            r.check.published or NONE,
            str(r.values.n if r.values else 0),
            r.verdict,
        )
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
        (
            row.label,
            accuracy(row.averages),
            accuracy(row.pairs),
            accuracy(row.alone),
            difference(row.counterpart_gain),
        )
        for row in c.group_effects
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
    text = "ours / paper: steps until the curve first reaches "
    if c.shares:
        text += "a share of the baseline's best accuracy"
        text += " (the paper's baseline for both)" if c.scale == "imagenet" else " (each its own baseline)"
    else:
        text += "an accuracy, in percent"
    text += ", mean over the seeds that do. *never*: not within the curve."
    rows = [(row.label, *(" / ".join(reach(row, i)) for i in range(len(c.published_thresholds)))) for row in c.rows]
    return Table("Steps to an accuracy", text, ("", *_thresholds(c)), tuple(rows))


def tables(c: Comparison) -> list[Table]:
    return [accuracy_table(c), ordering_table(c), check_table(c), group_table(c), reach_table(c)]


def _thresholds(c: Comparison) -> list[str]:
    if not c.shares:
        return [f"{value:g}%" for value in c.published_thresholds]
    ours = c.thresholds or (None,) * len(c.shares)
    return [
        f"{share:.0%}: {f'{own:.1f}' if own else NONE} / {theirs:.1f}"
        for share, own, theirs in zip(c.shares, ours, c.published_thresholds, strict=True)
    ]
