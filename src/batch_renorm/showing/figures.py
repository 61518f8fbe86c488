"""Figures 1 to 3 as in the paper, with our curves beside or over the paper's.

On the paper's data set our curves (solid, with the seeds' range as a band) are drawn over the paper's (thin). On
another one they are side by side with the same proportions: the paper's axis ends at 3/8 of its top, and so does ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, floor
from typing import Any

from batch_renorm.reporting.compare import mean_curve, values_by_seed
from batch_renorm.reporting.paper import Curve, Figure, Published, Series
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.reporting.samples import Sample
from batch_renorm.showing.looks import FAINT, Look, looks_of
from batch_renorm.showing.tables import NONE

WIDTH = 10.0  # inches; 1600 pixels in the PNG, made to be shown at 800
MARK = {"ms": 6, "mfc": "white", "mew": 1.4}


def draw_curves(figure: Figure, runs: Sequence[RecordedRun], published: Published, scale: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    on_imagenet, looks = scale == "imagenet", looks_of(figure.lines)
    curves = {series: published.curves[series] for series in figure.lines if series in published.curves}
    own_data = next((run.data for run in runs if run.data), None)
    alone = own_data is not None or not curves
    plot, row, head, foot = 3.55, 0.28, 0.75, 0.65  # inches
    footnotes = [] if alone else published.footnotes(figure.lines)
    legend = row * (len(figure.lines) + 1 + len(footnotes))
    height = head + plot + foot + legend + 0.15
    canvas = Canvas(figsize=(WIDTH, height))
    canvas.suptitle(figure.title, x=0.075, y=1 - 0.16 / height, ha="left", va="top", fontsize=15, weight="bold")
    bottom, tall = (legend + foot + 0.15) / height, plot / height
    if alone:
        ours = canvas.add_axes((0.075, bottom, 0.9, tall))
        ours.set_title(f"Ours: {scale}, mean and range over seeds", pad=8)
    elif on_imagenet:
        ours = theirs = canvas.add_axes((0.075, bottom, 0.9, tall))
        ours.set_title("Thick: ours, mean and range over seeds. Thin: the paper's.", pad=8)
    else:
        theirs = canvas.add_axes((0.075, bottom, 0.42, tall))
        ours = canvas.add_axes((0.555, bottom, 0.42, tall))
        theirs.set_title("The paper: Inception-v3, ImageNet", pad=8)
        ours.set_title(f"Ours: {scale}, mean and range over seeds", pad=8)

    first = ours
    if not alone:
        first = theirs
        for series, curve in curves.items():
            style = replace(looks[series], mark="") if on_imagenet else looks[series]
            draw_line(theirs, style, curve, lw=1.0 if on_imagenet else 1.7, zorder=2)
        last = [steps[-1] for steps, _ in curves.values()]
        if on_imagenet:
            last += [run.step for run in runs if run.experiment in {e for e, _ in figure.lines}]
        _frame(theirs, 30, 80, ceil(max(last) / 10_000) * 10_000)
    for series in figure.lines:
        _draw_seeds(ours, series, looks[series], runs)
    if alone or not on_imagenet:
        _fit(ours, list(figure.lines), runs)
    accuracies = all("top" in metric for _, metric in figure.lines)
    first.set_ylabel("top-1 accuracy, %" if accuracies else " ".join({m for _, m in figure.lines}).replace("_", " "))
    _number_table(canvas, figure, looks, runs, published, row / height, legend / height, alone)
    for i, note in enumerate(footnotes):
        y = (0.35 + len(footnotes) - 1 - i) * row / height
        canvas.text(0.075, y, note, va="center", fontsize=10.5, color=FAINT)
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
    axes.plot(steps, values, color=style.light, lw=lw, zorder=zorder, **options)


def _draw_seeds(axes: Any, series: Series, style: Look, runs: Sequence[RecordedRun]) -> None:
    """Draw the finished seeds' mean and range; each unfinished seed separately, faint, with a ring at its end.

    Seeds without common steps have no mean: then each is drawn separately.
    """
    experiment, metric = series
    hue = style.light
    own = [run for run in runs if run.experiment == experiment and metric in run.curve]
    finished = [run for run in own if run.finished]
    if curve := mean_curve(finished, metric):
        steps, mean, low, high = curve
        axes.fill_between(steps, low, high, color=hue, alpha=0.2, lw=0, zorder=3)
        draw_line(axes, replace(style, mark=style.mark or "o" * (len(steps) == 1)), (steps, mean), lw=2.2, zorder=4)
    else:
        for run in finished:
            draw_line(axes, style, run.curve[metric], lw=1.4, zorder=3)
    for run in own:
        if not run.finished:
            steps, values = run.curve[metric]
            axes.plot(steps, values, color=hue, lw=1.4, alpha=0.55, zorder=3)
            axes.plot(steps[-1], values[-1], "o", color=hue, mfc="white", ms=8, mew=1.8, zorder=5)


def _fit(axes: Any, lines: Sequence[Series], runs: Sequence[RecordedRun]) -> None:
    curves = [run.curve[m] for e, m in lines for run in runs if run.experiment == e and m in run.curve]
    if not curves:
        axes.text(0.5, 0.5, "not run yet", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    planned = [run.steps or run.step for run in runs if run.experiment in {e for e, _ in lines}]
    if not all("top" in metric for _, metric in lines):
        axes.set(xlim=(0, max([*planned, 1])), xlabel="training steps")
        return
    top = min(100, ceil((max(values.max() for _, values in curves) + 0.5) / 5) * 5)
    # The paper's proportions, unless a curve ends below them.
    low = floor(min(top * 30 / 80, *(values[-1] - 2 for _, values in curves)) / 5) * 5
    _frame(axes, max(0, min(low, top - 5)), top, max([*planned, 1]))


def _frame(axes: Any, low: float, high: float, steps: float) -> None:
    axes.set(xlim=(0, steps), ylim=(low, high), xlabel="training steps")
    axes.locator_params(axis="x", nbins=7, steps=[1, 2, 4, 5, 10])
    axes.locator_params(axis="y", nbins=6)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step else "0")


def _number_table(
    canvas: Any,
    figure: Figure,
    looks: Mapping[Series, Look],
    runs: Sequence[RecordedRun],
    published: Published,
    row: float,
    height: float,
    alone: bool,
) -> None:
    """The legend below the axes, where it covers no line, with numbers in columns."""
    from matplotlib.lines import Line2D

    columns = {"paper, best": 0.655, "ours, best": 0.815, "ours, final": 0.975}
    y = height - 0.2 * row
    for name, x in list(columns.items())[alone:]:
        canvas.text(x, y, name, ha="right", va="center", fontsize=11, color=FAINT)
    shown = [run for run in runs if run.experiment in {e for e, _ in figure.lines}]
    if not all(run.finished for run in shown):
        canvas.text(0.075, y, "faint, to a ring: unfinished", va="center", fontsize=11, color=FAINT)
    for series, name in figure.lines.items():
        y -= row
        experiment, metric = series
        style = looks[series]
        sample: dict[str, Any] = {"marker": style.mark, "markevery": [1], **MARK} if style.mark else {}
        canvas.add_artist(Line2D([0.075, 0.0925, 0.11], [y, y, y], color=style.light, lw=3, **sample))
        canvas.text(0.123, y, name, va="center_baseline", fontsize=min(13, 13 * 42 / len(name)))
        number, unit = published.number(series), "%" if "top" in metric else ""
        cells = ["" if alone else f"{number.top1:.1f}%{'*' * bool(published.footnotes([series]))}" if number else NONE]
        for which in ("best", "final"):
            values = tuple(values_by_seed(runs, series, which).values())
            text = (f"{Sample(values).mean:.1f}%" if unit else f"{Sample(values).mean:.3g}") if values else NONE
            cells.append(text)
        running = [run for run in runs if run.experiment == experiment and metric in run.curve and not run.finished]
        if running and cells[-1] == NONE:
            cells[-1] = f"{Sample(tuple(float(r.curve[metric][1][-1]) for r in running)).mean:.1f}% so far"
        for x, cell in zip(columns.values(), cells, strict=True):
            canvas.text(x, y, cell, ha="right", va="center_baseline")
