"""The summary figure: where every experiment's accuracy ends, as a distance from the baseline's end, and its best."""

from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from batch_renorm.reporting.compare import paired, values_by_seed
from batch_renorm.reporting.lists import CONTROLS, MINIBATCHES, title
from batch_renorm.reporting.paper import BASELINE, EXPERIMENTS, VAL, Published
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import canvas_with
from batch_renorm.showing.looks import FAINT, PAPERS_HEADING, look

FALL = 1.5  # a ring marks the best if the end is this many points below it
ROW, GAP = 0.345, 0.15  # inches: a row, and the space between minibatches
EDGE = 0.012  # of the width: where texts begin
LEGEND = "Dashed: the end of batchnorm on i.i.d. minibatches. Dots: ends of curves, one a seed. Rings: a higher best."
Ends = dict[str, list[tuple[float, float]]]
"""Experiment -> final and best accuracy of each seed."""
LABEL: dict[str, Any] = {"va": "center_baseline", "fontsize": 11.5}


def draw_summary(runs: Sequence[RecordedRun], published: Published, scale: str) -> Any:
    """Draw where curves end: a dot per seed, bars from the baseline.

    If a curve ends clearly below its best, a ring marks its best. Both panels have the same width in points and
    their baselines at the same position, so that bars are comparable.
    """
    rows = _rows({run.experiment for run in runs})
    depth = rows[-1][0]
    ours: Ends = {}
    for _, name in rows:
        finals, bests = (values_by_seed(runs, (name, VAL), which).values() for which in ("final", "best"))
        ours[name] = list(zip(finals, bests, strict=True))
    panels = {f"Ours: {scale}": ours}
    if not any(run.data for run in runs):  # on another data set the paper's accuracies do not apply
        papers = {name: published.curves[name, VAL][1] for name in EXPERIMENTS}
        panels = {PAPERS_HEADING: {name: [(float(v[-1]), float(v.max()))] for name, v in papers.items()}} | panels
    height = -depth + 1.7
    canvas = canvas_with(message(runs), height, EDGE, 14)
    canvas.text(EDGE, 0.15 / height, LEGEND, fontsize=10.5, color=FAINT)
    offsets = [value - _level(ends) for ends in panels.values() for seeds in ends.values() for value in chain(*seeds)]
    least, most = min([0.0, *offsets]), max([0.0, *offsets])
    room = max(most - least, 1.0)
    for i, (heading, ends) in enumerate(panels.items()):
        wide = 0.345 if len(panels) > 1 else 0.72
        axes = canvas.add_axes((0.265 + i * 0.375, 0.85 / height, wide, (height - 1.6) / height), title=heading)
        axes.set(ylim=(depth - 0.2, -0.1), yticks=[], xlabel="top-1 accuracy at the end, %")
        axes.spines["left"].set_visible(False)
        level = _level(ends)
        axes.set_xlim(level + least - 0.2 * room, level + most + 0.25 * room)  # space for the numbers
        axes.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
        if not any(ends.values()):
            axes.set(xticks=[])
        for at, name in rows:
            if i == 0:
                axes.text(-0.253 / wide, at, title(name), transform=axes.get_yaxis_transform(), **LABEL)
            if name in ends:
                _draw_row(axes, at, ends[name], look((name, VAL)).color, level, room)
        if ends[BASELINE[0]]:
            axes.axvline(level, color=look(BASELINE).color, lw=1.2, ls=(0, (4, 3)), zorder=1)
    return canvas


def message(runs: Sequence[RecordedRun]) -> str:
    """The runs' result on the paper's main claim, from the finished seeds' final values."""
    losses = {
        norm: paired(runs, (f"iid_{norm}", VAL), (f"noniid_{norm}", VAL), "final") for norm in ("batchnorm", "renorm")
    }
    if not losses["batchnorm"] or not losses["renorm"]:
        return "Where every experiment ends, from batchnorm's end on i.i.d. minibatches"
    batchnorm, renorm = losses["batchnorm"].mean, losses["renorm"].mean
    return f"On pairs batchnorm ends {_points(batchnorm)} its i.i.d. self, Batch Renorm {_points(renorm)}"


def _points(loss: float) -> str:
    return f"{abs(loss):.1f} points {'below' if loss >= 0 else 'above'}"


def _rows(there: set[str]) -> list[tuple[float, str]]:
    """Height in inches and experiment of each row: the paper's and our controls that have run, by their minibatches."""
    rows: list[tuple[float, str]] = []
    y = 0.0
    for minibatches in MINIBATCHES:
        y -= GAP * (y < 0)
        controls = [name for control in CONTROLS if (name := f"{minibatches}_{control}") in there]
        for name in (*(e for e in EXPERIMENTS if e.startswith(f"{minibatches}_")), *controls):
            y -= ROW
            rows.append((y, name))
    return rows


def _level(ends: Ends) -> float:
    """The baseline's mean end, or the best experiment's if the baseline has not run."""
    means = {name: fmean(final for final, _ in seeds) for name, seeds in ends.items() if seeds}
    return means.get(BASELINE[0], max(means.values(), default=0.0))


def _draw_row(axes: Any, at: float, seeds: list[tuple[float, float]], color: str, level: float, room: float) -> None:
    """Draw a bar from the baseline to the mean end, a dot for each seed, and a dotted way to the best."""
    if not seeds:
        across = axes.get_yaxis_transform()
        axes.text(0.02, at, "no finished run", transform=across, va="center_baseline", color=FAINT)
        return
    ends, bests = zip(*seeds, strict=True)
    mean, best = fmean(ends), fmean(bests)
    axes.plot([level, mean], [at, at], color=color, lw=3, alpha=0.35, solid_capstyle="butt", zorder=2)
    axes.plot(ends, [at] * len(ends), "o", color=color, mec="white", mew=0.8, ms=7.5, zorder=3)
    left = best - mean > FALL
    x = min(ends) - 0.035 * room if left else max(*ends, level) + 0.035 * room
    axes.text(x, at, f"{mean:.1f}", va="center_baseline", ha="right" if left else "left")
    if left:
        axes.plot([mean, best], [at, at], color=color, lw=1.4, ls=(0, (2, 2)), zorder=2)
        axes.plot(best, at, "o", color=color, mfc="white", mew=1.8, ms=7.5, zorder=4)
        axes.text(max(best, level) + 0.035 * room, at, f"{best:.1f}", va="center_baseline", color=FAINT)
