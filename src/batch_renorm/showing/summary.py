"""The summary figure: every experiment's best accuracy as a distance from the baseline, and falls after the best."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from batch_renorm.reporting.compare import paired, values_by_seed
from batch_renorm.reporting.paper import BASELINE, EXPERIMENTS, VAL, Published
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import WIDTH
from batch_renorm.showing.looks import FAINT, look

FALL = 1.5  # a ring marks the end if it is this many points below the best


def draw_summary(runs: Sequence[RecordedRun], published: Published, scale: str) -> Any:
    """Draw the seven experiments' best accuracies (which the paper prints): a dot per seed, bars from the baseline.

    If a curve ends clearly below its best, a ring marks its end. Both panels have the same width in points and
    their baselines at the same position, so that bars are comparable.
    """
    from matplotlib.figure import Figure as Canvas

    theirs = {name: [n.top1] for name in EXPERIMENTS if (n := published.number((name, VAL)))}
    ours = {name: list(values_by_seed(runs, (name, VAL), "best").values()) for name in EXPERIMENTS}
    ends = [
        {name: float(published.curves[name, VAL][1][-1]) for name in EXPERIMENTS if (name, VAL) in published.curves},
        {name: fmean(v.values()) for name in EXPERIMENTS if (v := values_by_seed(runs, (name, VAL), "final"))},
    ]
    rows, depth = _rows()
    canvas = Canvas(figsize=(WIDTH, 5.5))
    canvas.suptitle(message(runs), x=0.012, y=0.985, ha="left", va="top", fontsize=14, weight="bold")
    legend = (
        "Dashed: batchnorm on i.i.d. minibatches, the baseline. Bars go from it to the best; a dotted way to a ring, "
    )
    canvas.text(0.012, 0.058, legend + "to where the curve ends.", fontsize=10.5, color=FAINT)
    footnotes = [] if any(run.data for run in runs) else published.footnotes((name, VAL) for name in EXPERIMENTS)
    canvas.text(0.012, 0.022, "; ".join(footnotes), fontsize=10.5, color=FAINT)
    panels = {"The paper: Inception-v3, ImageNet": theirs, f"Ours: {scale}, a dot a seed": ours}
    if any(run.data for run in runs):  # another data set: the paper's accuracies do not apply
        panels, ends = {f"Ours: {scale}, a dot a seed": ours}, ends[1:]
    offsets = [v - _level(values) for values in panels.values() for seeds in values.values() for v in seeds]
    offsets += [
        v - _level(values) for values, end in zip(panels.values(), ends, strict=True) if any(values.values())
        for v in end.values()
    ]  # fmt: skip
    least, most = min(0, *offsets), max(0, *offsets)
    for i, (title, values) in enumerate(panels.items()):
        axes = canvas.add_axes((0.265 + i * 0.375, 0.2, 0.345 if len(panels) > 1 else 0.72, 0.66))
        axes.set_title(title, pad=8)
        axes.set(ylim=(depth - 0.6, 0.6), yticks=[], xlabel="best top-1 accuracy, %")
        axes.spines["left"].set_visible(False)
        if not any(values.values()):
            axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=FAINT)
            axes.set(xticks=[])
            if len(panels) > 1:
                continue
        room, level = max(most - least, 1.0), _level(values)
        axes.set_xlim(level + least - 0.2 * room, level + most + 0.25 * room)  # space on the right for the numbers
        axes.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
        for at, name, text in rows:
            if i == 0:
                across = 1.0 if len(panels) > 1 else 0.345 / 0.72
                where = (across * (-0.68 if name else -0.735), at)
                style: dict[str, Any] = {} if name else {"weight": "bold", "fontsize": 12}
                axes.text(*where, text, transform=axes.get_yaxis_transform(), va="center_baseline", **style)
            if name:
                hue, gap = look((name, VAL)).light, 0.035 * room
                star = "*" if values is theirs and published.footnotes([(name, VAL)]) else ""
                _draw_dots(axes, at, values[name], hue, level, gap, star)
                if values[name] and name in ends[i] and fmean(values[name]) - ends[i][name] > FALL:
                    _draw_end(axes, at, fmean(values[name]), ends[i][name], hue, gap)
        if values[BASELINE[0]]:
            axes.axvline(level, color=look(BASELINE).light, lw=1.2, ls=(0, (4, 3)), zorder=1)
    return canvas


def message(runs: Sequence[RecordedRun]) -> str:
    """The runs' result on the paper's main claim, from the finished seeds' final values."""
    losses = {
        norm: paired(runs, (f"iid_{norm}", VAL), (f"noniid_{norm}", VAL), "final") for norm in ("batchnorm", "renorm")
    }
    if not losses["batchnorm"] or not losses["renorm"]:
        return "Every experiment's best accuracy, from batchnorm's on i.i.d. minibatches"
    batchnorm, renorm = losses["batchnorm"].mean, losses["renorm"].mean
    return f"On pairs batchnorm ends {_points(batchnorm)} its i.i.d. self, Batch Renorm {_points(renorm)}"


def _points(loss: float) -> str:
    return f"{abs(loss):.1f} points {'below' if loss >= 0 else 'above'}"


def _draw_end(axes: Any, at: float, best: float, end: float, hue: str, gap: float) -> None:
    """Draw a line from a curve's best to its end."""
    axes.plot([end, best], [at, at], color=hue, lw=1.4, ls=(0, (2, 2)), zorder=2)
    axes.plot(end, at, "o", color=hue, mfc="white", mew=1.8, ms=7.5, zorder=4)
    axes.text(end - gap, at, f"{end:.1f}", va="center_baseline", ha="right")


def _rows() -> tuple[list[tuple[float, str | None, str]], float]:
    """Height, experiment (None for a heading) and text of each row, and the last one's height."""
    rows: list[tuple[float, str | None, str]] = []
    y, heading = 1.45, ""
    for experiment in EXPERIMENTS.values():
        if experiment.heading != heading:
            heading = experiment.heading
            y -= 1.45
            rows.append((y, None, heading))
        y -= 1
        rows.append((y, experiment.name, experiment.arm))
    return rows, y


def _level(values: dict[str, list[float]]) -> float:
    """The baseline's mean, or the best experiment's if the baseline has not run."""
    means = {name: sum(seeds) / len(seeds) for name, seeds in values.items() if seeds}
    return means.get(BASELINE[0], max(means.values(), default=0.0))


def _draw_dots(axes: Any, at: float, seeds: list[float], hue: str, level: float, gap: float, star: str) -> None:
    if not seeds:
        across = axes.get_yaxis_transform()
        axes.text(0.02, at, "no finished run", transform=across, va="center_baseline", color=FAINT)
        return
    mean = sum(seeds) / len(seeds)
    axes.plot([level, mean], [at, at], color=hue, lw=3, alpha=0.35, solid_capstyle="butt", zorder=2)
    axes.plot(seeds, [at] * len(seeds), "o", color=hue, mec="white", mew=0.8, ms=7.5, zorder=3)
    axes.text(max(*seeds, level) + gap, at, f"{mean:.1f}{star}", va="center_baseline")
