"""Figures 1 to 3 as in the paper, with our curves beside the paper's; alone on a data set of one's own."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from batch_renorm.reporting.compare import mean_curve, values_by_seed
from batch_renorm.reporting.paper import Curve, Figure, Published, Series
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.looks import FAINT, PAPERS_HEADING, Look, looks_of, ours_heading
from batch_renorm.showing.tables import NONE

WIDTH = 10.0  # inches; 1600 pixels in the PNG, made to be shown at 800
LEFT, MIDDLE, HALF = 0.075, 0.555, 0.42  # of two panels: where they begin and their width, as fractions of the whole
RIGHT = MIDDLE + HALF
MARK = {"ms": 6, "mfc": "white", "mew": 1.4}
PAPERS_RANGE = (30.0, 80.0)  # percent, in the paper's figures


def canvas_with(title: str, height: float, left: float = LEFT, size: float = 15) -> Any:
    """An empty figure, `height` inches high."""
    canvas = Canvas(figsize=(WIDTH, height))
    canvas.suptitle(title, x=left, y=1 - 0.16 / height, ha="left", va="top", fontsize=size, weight="bold")
    return canvas


def two_panels(canvas: Any, bottom: float, tall: float, *titles: str) -> tuple[Any, Any]:
    """Axes side by side, with the same y axis."""
    left = canvas.add_axes((LEFT, bottom, HALF, tall), title=titles[0])
    right = canvas.add_axes((MIDDLE, bottom, HALF, tall), title=titles[1], sharey=left)
    right.tick_params(labelleft=False)
    return left, right


def draw_key(canvas: Any, x: float, y: float, style: Look, name: str, size: float = 13, **line: Any) -> None:
    """A line of a legend: a sample of the curve, and its name."""
    options = {"color": style.color, "lw": 3, "marker": style.mark, "markevery": [1], **MARK, **line}
    canvas.add_artist(Line2D([x, x + 0.0175, x + 0.035], [y, y, y], **options))
    canvas.text(x + 0.048, y, name, va="center_baseline", fontsize=size)


def draw_curves(figure: Figure, runs: Sequence[RecordedRun], published: Published, scale: str) -> Any:
    looks = looks_of(figure.lines)
    curves = {series: published.curves[series] for series in figure.lines if series in published.curves}
    alone = not curves or any(run.data for run in runs)
    footnotes = [] if alone else published.footnotes(figure.lines)
    plot, row, head, foot = 3.55, 0.28, 0.75, 0.65  # inches
    legend = row * (len(figure.lines) + 1 + len(footnotes))
    height = head + plot + foot + legend + 0.15
    canvas = canvas_with(figure.title, height)
    bottom, tall = (legend + foot + 0.15) / height, plot / height
    low, high = _limits(figure, runs)
    if alone:
        left = ours = canvas.add_axes((LEFT, bottom, RIGHT - LEFT, tall), title=ours_heading(scale))
    else:
        left, ours = two_panels(canvas, bottom, tall, PAPERS_HEADING, ours_heading(scale))
        for series, curve in curves.items():
            draw_line(left, looks[series], curve, lw=1.7, zorder=2)
        low, high = min(low, PAPERS_RANGE[0]), max(high, PAPERS_RANGE[1])
        _frame(left, low, high, ceil(max(steps[-1] for steps, _ in curves.values()) / 10_000) * 10_000)
    shown = [run for run in runs if run.experiment in {experiment for experiment, _ in figure.lines}]
    for series in figure.lines:
        _draw_seeds(ours, series, looks[series], runs)
    _frame(ours, low, high, max([run.steps or run.step for run in shown] + [1]))
    if not any(metric in run.curve for e, metric in figure.lines for run in shown if run.experiment == e):
        ours.text(0.5, 0.5, "not run yet", transform=ours.transAxes, ha="center", color=FAINT)
    left.set_ylabel("accuracy, %" if any("top5" in metric for _, metric in figure.lines) else "top-1 accuracy, %")
    _number_table(canvas, figure, runs, published, row / height, (legend - 0.2 * row) / height, alone)
    for i, note in enumerate(reversed(footnotes)):
        canvas.text(LEFT, (0.35 + i) * row / height, note, va="center", fontsize=10.5, color=FAINT)
    return canvas


def draw_line(axes: Any, style: Look, curve: Curve, lw: float, zorder: float) -> None:
    """Draw a solid line with evenly spaced marks, shifted from line to line, and none at an end."""
    steps, values = curve
    options: dict[str, Any] = {}
    if style.mark:
        shift = "o^sDPvX*".index(style.mark)
        few = list(range(shift % 2, len(steps) - 1, max(1, len(steps) // 6)))
        every = (0.02 + shift / 50, 0.14) if len(steps) > 30 else few
        options = {"marker": style.mark, "markevery": every, **MARK}
    axes.plot(steps, values, color=style.color, lw=lw, zorder=zorder, **options)


def _draw_seeds(axes: Any, series: Series, style: Look, runs: Sequence[RecordedRun]) -> None:
    """Draw the finished seeds' mean and range; each unfinished seed separately, faint, with a ring at its end."""
    experiment, metric = series
    drawn = [run for run in runs if run.experiment == experiment and metric in run.curve]
    if curve := mean_curve([run for run in drawn if run.finished], metric):
        steps, mean, low, high = curve
        axes.fill_between(steps, low, high, color=style.color, alpha=0.2, lw=0, zorder=3)
        draw_line(axes, replace(style, mark=style.mark or "o" * (len(steps) == 1)), (steps, mean), lw=2.2, zorder=4)
    for run in drawn:
        if not run.finished:
            steps, values = run.curve[metric]
            axes.plot(steps, values, color=style.color, lw=1.4, alpha=0.55, zorder=3)
            axes.plot(steps[-1], values[-1], "o", color=style.color, mfc="white", ms=8, mew=1.8, zorder=5)


def _limits(figure: Figure, runs: Sequence[RecordedRun]) -> tuple[float, float]:
    """The y axis of our curves: from where the paper's start, or where a curve ends, by multiples of 5."""
    curves = [run.curve[m] for e, m in figure.lines for run in runs if run.experiment == e and m in run.curve]
    values = [value for _, values in curves for value in values]
    if not values:
        return PAPERS_RANGE
    high = min(100, ceil((max(values) + 0.5) / 5) * 5)
    low = floor(min(PAPERS_RANGE[0], *(values[-1] - 2 for _, values in curves)) / 5) * 5
    return max(0, min(low, high - 5)), high


def _frame(axes: Any, low: float, high: float, steps: float) -> None:
    axes.set(xlim=(0, steps), ylim=(low, high), xlabel="training steps")
    axes.locator_params(axis="x", nbins=7, steps=[1, 2, 4, 5, 10])
    axes.locator_params(axis="y", nbins=6)
    axes.xaxis.set_major_formatter(thousands)


def thousands(step: float, _: object) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


def _number_table(
    canvas: Any, figure: Figure, runs: Sequence[RecordedRun], published: Published, row: float, y: float, alone: bool
) -> None:
    """The legend below the axes, where it covers no line, with numbers in columns."""
    columns = {"paper, best": 0.655, "ours, best": 0.815, "ours, final": RIGHT}
    for name, x in list(columns.items())[alone:]:
        canvas.text(x, y, name, ha="right", va="center", fontsize=11, color=FAINT)
    if not all(run.finished for run in runs if run.experiment in {e for e, _ in figure.lines}):
        canvas.text(LEFT, y, "faint, to a ring: unfinished", va="center", fontsize=11, color=FAINT)
    looks = looks_of(figure.lines)
    for series, name in figure.lines.items():
        y -= row
        draw_key(canvas, LEFT, y, looks[series], name, min(13, 13 * 42 / len(name)))
        number = published.number(series)
        cells = ["" if alone else f"{number.top1:.1f}%{'*' * bool(published.footnotes([series]))}" if number else NONE]
        for which in ("best", "final"):
            values = values_by_seed(runs, series, which).values()
            cells.append(f"{fmean(values):.1f}%" if values else NONE)
        for x, cell in zip(columns.values(), cells, strict=True):
            canvas.text(x, y, cell, ha="right", va="center_baseline")
