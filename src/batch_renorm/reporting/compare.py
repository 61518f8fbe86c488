"""Our runs against the paper: means over seeds, gaps, steps to reach an accuracy, and whether its orderings hold.

- *final* is a curve's last value, *best* its largest. The paper's printed numbers are its curves' largest
  values, so gaps to them use *best*; claims use *final*, which involves no selection.
- Only finished runs count. Differences are taken seed by seed (the same seed draws the same images); their
  mean has a two-sided 95% t-interval over the seeds.
- Accuracies in percent, differences in points.
"""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from batch_renorm.records.config import flat_options
from batch_renorm.reporting import paper
from batch_renorm.reporting.checks import Check, checks, own_checks
from batch_renorm.reporting.differences import FILES
from batch_renorm.reporting.lists import controls, title
from batch_renorm.reporting.paper import BASELINE, VAL, Claim, Curve, Figure, Published, Series
from batch_renorm.reporting.recorded import RecordedRun, Sample

Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # steps, mean, least and largest value

HOLDS, HOLDS_UNSURE = "holds", "holds, not sure"
FAILS, FAILS_UNSURE = "does not hold", "does not hold, not sure"
NOT_RUN, NOT_MEASURED = "not run", "not measured"

MOST = 2 / 3  # if this fraction of the experiments has a seed, the others lack it; some may have extra seeds on purpose
# Shares of the baseline's best accuracy. A share means the same on any data set; smaller shares are not possible,
# because the paper's curves start at 30%.
SHARES = (0.80, 0.90, 0.95, 0.98)


def steps_to_reach(curve: Curve, accuracy: float) -> float | None:
    """The step at which the curve first reaches the accuracy, interpolated; None if it never does.

    For a curve that starts above the accuracy it is the first step, which is an upper bound.
    """
    steps, values = curve
    above = np.flatnonzero(values >= accuracy)
    if not len(above):
        return None
    near = slice(max(above[0] - 1, 0), above[0] + 1)
    return float(np.interp(accuracy, values[near], steps[near]))


@dataclass(frozen=True)
class Row:
    """One curve of the paper and our runs of it."""

    series: Series
    label: str
    seeds: tuple[int, ...]  # finished
    unfinished: tuple[RecordedRun, ...]
    final: Sample | None
    best: Sample | None
    published: float | None
    gap: float | None  # best mean - published; None on another data set than the paper's
    to_baseline: Sample | None  # best minus the baseline's best, by seed
    published_to_baseline: float | None
    reach: tuple[tuple[float, ...], ...]  # for each threshold, the steps of those seeds that reach it
    published_reach: tuple[float | None, ...]
    minutes: float | None  # mean wall time of a run
    # Final values of the same experiment with muB and sigmaB:
    pairs: Sample | None  # of minibatches of labels x 2 images
    alone: Sample | None  # of minibatches with each label once
    counterpart_gain: Sample | None  # pairs - alone, by seed


@dataclass(frozen=True)
class ClaimResult:
    claim: Claim
    published: float | None  # the difference of the printed numbers, which are best values
    published_final: float | None  # of the ends of the paper's curves
    final: Sample | None  # left - right, by seed
    best: Sample | None
    verdict: str


@dataclass(frozen=True)
class CheckResult:
    check: Check
    values: Sample | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    scale: str
    rows: tuple[Row, ...]
    claims: tuple[ClaimResult, ...]
    checks: tuple[CheckResult, ...]
    thresholds: tuple[float, ...]  # SHARES of the baseline's best, percent; empty without a finished baseline
    published_thresholds: tuple[float, ...]
    missing: tuple[str, ...]  # commands that make what is missing
    notes: tuple[str, ...]
    data: str | None  # the data set's name if it is not the scale's: the paper's accuracies then do not apply
    figures: Mapping[str, Figure]


def compare(runs: Sequence[RecordedRun], published: Published, scale: str, asked: Mapping[str, Figure]) -> Comparison:
    """Compare runs with the paper; the figures `asked` for are drawn, too."""
    runs = [run for run in runs if run.scale == scale]
    baseline = published.number(BASELINE)
    papers = tuple(s * baseline.top1 for s in SHARES if baseline)
    bests = values_by_seed(runs, BASELINE, "best")
    ours = tuple(share * fmean(bests.values()) for share in SHARES) if bests else ()
    return Comparison(
        scale=scale,
        rows=tuple(_row(runs, published, s, label, (ours, papers)) for s, label in series_of(runs).items()),
        claims=tuple(judge(claim, runs, published) for claim in paper.CLAIMS),
        checks=tuple(_checked(c, runs) for c in (*checks(published), *own_checks(runs))),
        thresholds=ours,
        published_thresholds=papers,
        missing=tuple(missing_commands(runs, scale)),
        notes=tuple(set_apart(runs)),
        data=next((run.data for run in runs if run.data), None),
        figures={**paper.FIGURES, **controls(runs), **asked},
    )


def series_of(runs: Sequence[RecordedRun]) -> dict[Series, str]:
    """The compared curves with their labels: the paper's, our additional ones below their experiment, then others.

    Rows that differ from an experiment come below it; rows on another data set have its name.
    """
    base = {run.experiment: run.base_experiment for run in runs}
    measured = {(run.experiment, metric) for run in runs for metric in run.curve}
    ours = {experiment for experiment, _ in paper.OWN_SERIES.keys() & measured}
    data = next((f", {run.data}" for run in runs if run.data), "")
    series: dict[Series, str] = {}
    for name in (*paper.EXPERIMENTS, *sorted(set(base.values()) - set(paper.EXPERIMENTS))):
        if name in paper.EXPERIMENTS or name in base:
            series[name, VAL] = title(name) + data
        series |= {s: label for s, label in paper.SERIES.items() if s[0] == name and s[1] != VAL}
        series |= {s: label for s, label in paper.OWN_SERIES.items() if s[0] == name and name in ours}
        series |= {(row, VAL): row + data for row in sorted(base) if base[row] == name != row}
    return series


def values_by_seed(runs: Sequence[RecordedRun], series: Series, which: str) -> dict[int, float]:
    """seed -> the "final", "best", "fall" or "late_percent" of the finished runs that have measured it."""
    experiment, metric = series
    finished = [run for run in runs if run.finished and run.experiment == experiment and metric in run.curve]
    return {run.seed: getattr(run, which)(metric) for run in sorted(finished, key=lambda run: run.seed)}


def paired(runs: Sequence[RecordedRun], left: Series, right: Series, which: str) -> Sample | None:
    """left minus right for every seed that has both."""
    a, b = values_by_seed(runs, left, which), values_by_seed(runs, right, which)
    return Sample.of(a[seed] - b[seed] for seed in a if seed in b)


def _sample(runs: Sequence[RecordedRun], series: Series, which: str) -> Sample | None:
    return Sample.of(values_by_seed(runs, series, which).values())


def judge(claim: Claim, runs: Sequence[RecordedRun], published: Published) -> ClaimResult:
    final, best = (paired(runs, claim.left, claim.right, which) for which in ("final", "best"))
    printed, ends = (find(claim.left, claim.right) for find in (published.difference, published.final_difference))
    return ClaimResult(claim, printed, ends, final, best, verdict(claim, final))


def _checked(check: Check, runs: Sequence[RecordedRun]) -> CheckResult:
    if check.minus is None:
        values = _sample(runs, check.series, check.value)
    else:
        values = paired(runs, check.series, check.minus, check.value)
    have_run = {run.experiment for run in runs if run.finished} >= {s[0] for s in (check.series, check.minus) if s}
    return CheckResult(check, values, NOT_MEASURED if values is None and have_run else verdict(check, values))


def verdict(claim: Claim | Check, values: Sample | None) -> str:
    """The verdict by the mean; it is sure if the whole interval agrees, which needs at least two seeds."""
    if values is None:
        return NOT_RUN
    interval = values.interval
    if claim.agrees(values.mean):
        return HOLDS if interval and all(map(claim.agrees, interval)) else HOLDS_UNSURE
    low, high = claim.range()
    return FAILS if interval and (interval[1] < low or interval[0] > high) else FAILS_UNSURE


def mean_curve(runs: Sequence[RecordedRun], metric: str) -> Band | None:
    """Over the runs, on the steps that all of them cover; None if there are none."""
    curves = [run.curve[metric] for run in runs if metric in run.curve]
    if not curves:
        return None
    first, last = max(s[0] for s, _ in curves), min(s[-1] for s, _ in curves)
    steps = np.unique(np.concatenate([s for s, _ in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        return None
    values = np.stack([np.interp(steps, s, v) for s, v in curves])
    return steps, values.mean(0), values.min(0), values.max(0)


def _row(
    runs: Sequence[RecordedRun], published: Published, series: Series, label: str, thresholds: Sequence[Sequence[float]]
) -> Row:
    """`thresholds` are ours and the paper's."""
    experiment, metric = series
    pairs, alone = (experiment, paper.BATCH_STATISTICS), (experiment, paper.NO_COUNTERPART)
    of_row = [run for run in runs if run.experiment == experiment]
    finished = [run for run in of_row if run.finished and metric in run.curve]
    best = _sample(runs, series, "best")
    number = None if any(run.data for run in runs) else published.number(series)
    on_imagenet = any(run.scale == "imagenet" for run in runs)
    reached = [[steps_to_reach(run.curve[metric], t) for run in finished] for t in thresholds[0]]
    curve = published.curves.get(series)
    walls = [w for run in finished if isinstance(w := run.info.get("wall_seconds"), int | float) and w > 0]
    return Row(
        series=series,
        label=label,
        seeds=tuple(sorted(run.seed for run in finished)),
        unfinished=tuple(run for run in of_row if not run.finished),
        final=_sample(runs, series, "final"),
        best=best,
        published=number.top1 if number else None,
        gap=best.mean - number.top1 if best and number and on_imagenet else None,
        to_baseline=None if series == BASELINE else paired(runs, series, BASELINE, "best"),
        published_to_baseline=None if series == BASELINE else published.difference(series, BASELINE),
        reach=tuple(tuple(s for s in steps if s is not None) for steps in reached),
        published_reach=tuple(steps_to_reach(curve, t) if curve else None for t in thresholds[1]),
        minutes=fmean(walls) / 60 if walls else None,
        pairs=_sample(runs, pairs, "final"),
        alone=_sample(runs, alone, "final"),
        counterpart_gain=paired(runs, pairs, alone, "final"),
    )


def missing_commands(runs: Sequence[RecordedRun], scale: str) -> list[str]:
    """The commands that complete the table: every experiment with the seeds that most have, and unfinished runs.

    None for runs on another data set than their scale's: they need the options of the runs that are there, too.
    """
    if any(run.data for run in runs):
        return []
    there = {(run.experiment, run.seed): run for run in runs if run.experiment in paper.EXPERIMENTS}
    have = Counter(seed for _, seed in there)
    begun = len({experiment for experiment, _ in there})
    seeds = sorted(seed for seed, n in have.items() if n >= MOST * begun) or sorted(have)[:1] or [0]
    files = {"data.root": "/path/to/imagenet"} if scale == "imagenet" else {}
    files |= {k: v for run in runs for k, v in flat_options(run.config) if k in FILES and v is not None}
    options = "" if scale == "glyphs" else f" scale={scale}"
    options += "".join(f" {option}={shlex.quote(str(file))}" for option, file in files.items())
    commands = []
    for experiment in paper.EXPERIMENTS:
        for seed in sorted({*seeds} | {seed for name, seed in there if name == experiment}):
            run = there.get((experiment, seed))
            if run is None or not run.finished:
                resumes = f"  # resumes: {run.progress}" if run else ""
                commands.append(f"python train.py experiment={experiment} seed={seed}{options}{resumes}")
    return commands


def set_apart(runs: Sequence[RecordedRun]) -> list[str]:
    """Rows that do not count in verdicts, because they were not trained like the paper's experiments."""
    rows: dict[str, list[int]] = {}
    for run in runs:
        if run.differs:
            rows.setdefault(run.experiment, []).append(run.seed)
    text = "; ".join(f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in sorted(rows.items()))
    return [f"in rows of their own and in no verdict, as they differ from their experiments: {text}"] * bool(rows)
