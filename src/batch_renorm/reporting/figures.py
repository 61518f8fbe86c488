"""Figures 1 to 3 as the paper draws them, ours beside or over theirs, and one summary of the final accuracies.

On the paper's data set ours (solid, with the seeds' range as a band) is drawn over theirs (thin, dashed). On another
one the two stand side by side with the same proportions: the paper's axis ends at 3/8 of its top, and so does ours.
matplotlib is imported when something is drawn, so that printing a table does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path
from typing import Any

from batch_renorm.reporting.compare import Sample, mean_curve, values_by_seed
from batch_renorm.reporting.paper import (
    BASELINE,
    BATCH_STATISTICS,
    EXPERIMENTS,
    FIGURES,
    TRAIN,
    VAL,
    Figure,
    Published,
    Series,
)
from batch_renorm.reporting.runs import Run
from batch_renorm.reporting.tables import NONE

# Grey is the baseline, vermilion batchnorm in trouble, blue always Batch Renorm (Okabe and Ito's colours, which
# colour-blind readers tell apart).
HUES: dict[Series, str] = {
    ("iid_batchnorm", VAL): "#555555",
    ("iid_renorm", VAL): "#0072B2",
    ("micro4_batchnorm", VAL): "#D55E00",
    ("micro4_renorm", VAL): "#0072B2",
    ("noniid_batchnorm", VAL): "#D55E00",
    ("noniid_batchnorm", TRAIN): "#E69F00",
    ("noniid_batchnorm", BATCH_STATISTICS): "#CC79A7",
    ("noniid_halves_batchnorm", VAL): "#009E73",
    ("noniid_renorm", VAL): "#0072B2",
}
INK, FAINT = "#222222", "#8a8a8a"
WIDTH = 10.0  # inches; 1600 pixels in the PNG, made to be shown at 800
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "batch-renorm",  # the same runs give the same file
}


def draw_all(runs: Sequence[Run], published: Published, scale: str, folder: Path) -> list[Path]:
    """Writes fig1, fig2, fig3 and summary as PNG and SVG."""
    from matplotlib import rc_context

    runs = [run for run in runs if run.scale == scale]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(STYLE):
        drawings = {name: draw_curves(figure, runs, published, scale) for name, figure in FIGURES.items()}
        drawings["summary"] = draw_summary(runs, published, scale)
        for name, drawing in drawings.items():
            for kind in ("png", "svg"):
                path = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                drawing.savefig(path, dpi=160, facecolor="white", metadata=metadata)
                written.append(path)
    return written


def draw_curves(figure: Figure, runs: Sequence[Run], published: Published, scale: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    on_imagenet = scale == "imagenet"
    plot, row, head, foot = 3.55, 0.28, 0.75, 0.65  # inches
    legend = row * (len(figure.lines) + 1)
    height = head + plot + foot + legend + 0.15
    canvas = Canvas(figsize=(WIDTH, height))
    canvas.suptitle(figure.title, x=0.075, y=1 - 0.16 / height, ha="left", va="top", fontsize=15, weight="bold")
    bottom, tall = (legend + foot + 0.15) / height, plot / height
    if on_imagenet:
        ours = theirs = canvas.add_axes((0.075, bottom, 0.9, tall))
        ours.set_title("Solid: ours, mean and range over seeds. Dashed: the paper's.", pad=8)
    else:
        theirs = canvas.add_axes((0.075, bottom, 0.42, tall))
        ours = canvas.add_axes((0.555, bottom, 0.42, tall))
        theirs.set_title("The paper: Inception-v3, ImageNet", pad=8)
        ours.set_title(f"Ours: {scale}, mean and range over seeds", pad=8)

    curves = {series: published.curves[series] for series in figure.lines}
    for series, (steps, values) in curves.items():
        dashes = (0, (4, 2)) if on_imagenet else "-"
        theirs.plot(steps, values, color=HUES[series], lw=1.1 if on_imagenet else 1.5, ls=dashes, zorder=2)
    for series in figure.lines:
        _draw_seeds(ours, series, runs)
    last = [steps[-1] for steps, _ in curves.values()]
    if on_imagenet:
        last += [run.step for run in runs if run.experiment in {e for e, _ in figure.lines}]
    _frame(theirs, 30, 80, ceil(max(last) / 10_000) * 10_000)
    if not on_imagenet:
        _fit(ours, list(figure.lines), runs)
    theirs.set_ylabel("top-1 accuracy, %")
    _number_table(canvas, figure, runs, published, row / height, legend / height)
    return canvas


def _draw_seeds(axes: Any, series: Series, runs: Sequence[Run]) -> None:
    """The finished seeds' mean and range; an unfinished one on its own, dotted, with a ring at its end."""
    experiment, metric = series
    own = [run for run in runs if run.experiment == experiment and metric in run.curve]
    if curve := mean_curve([run for run in own if run.finished], metric):
        steps, mean, low, high = curve
        axes.fill_between(steps, low, high, color=HUES[series], alpha=0.22, lw=0, zorder=3)
        axes.plot(steps, mean, color=HUES[series], lw=2, zorder=4)
    for run in own:
        if not run.finished:
            steps, values = run.curve[metric]
            axes.plot(steps, values, color=HUES[series], lw=1.4, ls=(0, (1, 1.5)), zorder=3)
            axes.plot(steps[-1], values[-1], "o", color=HUES[series], mfc="white", ms=5, zorder=5)


def _fit(axes: Any, lines: Sequence[Series], runs: Sequence[Run]) -> None:
    curves = [run.curve[m] for e, m in lines for run in runs if run.experiment == e and m in run.curve]
    if not curves:
        axes.text(0.5, 0.5, "not run yet", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    top = min(100, ceil((max(values.max() for _, values in curves) + 0.5) / 5) * 5)
    # The paper's proportions, unless a curve ends below them.
    low = floor(min(top * 30 / 80, *(values[-1] - 2 for _, values in curves)) / 5) * 5
    planned = [run.steps or run.step for run in runs if run.experiment in {e for e, _ in lines}]
    _frame(axes, max(0, low), top, max(planned))


def _frame(axes: Any, low: float, high: float, steps: float) -> None:
    axes.set(xlim=(0, steps), ylim=(low, high), xlabel="training steps")
    axes.locator_params(axis="x", nbins=7, steps=[1, 2, 4, 5, 10])
    axes.locator_params(axis="y", nbins=6)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step else "0")


def _number_table(
    canvas: Any, figure: Figure, runs: Sequence[Run], published: Published, row: float, height: float
) -> None:
    """The legend: below the axes, where it covers no line, with the numbers in columns."""
    from matplotlib.lines import Line2D

    columns = {"paper, best": 0.655, "ours, best": 0.815, "ours, final": 0.975}
    y = height - 0.2 * row
    for name, x in columns.items():
        canvas.text(x, y, name, ha="right", va="center", fontsize=11, color=FAINT)
    shown = [run for run in runs if run.experiment in {e for e, _ in figure.lines}]
    if not all(run.finished for run in shown):
        canvas.text(0.075, y, "dotted, to a ring: unfinished", va="center", fontsize=11, color=FAINT)
    for series, name in figure.lines.items():
        y -= row
        experiment, metric = series
        canvas.add_artist(Line2D([0.075, 0.105], [y, y], color=HUES[series], lw=3))
        canvas.text(0.118, y, name, va="center_baseline")
        number = published.number(series, printed_in=figure.name.replace("fig", "figure "))
        cells = [f"{number.top1:.1f}%" if number else NONE]
        for which in ("best", "final"):
            values = tuple(values_by_seed(runs, series, which).values())
            cells.append(f"{Sample(values).mean:.1f}%" if values else NONE)
        running = [run for run in runs if run.experiment == experiment and metric in run.curve and not run.finished]
        if running and cells[-1] == NONE:
            cells[-1] = f"{Sample(tuple(float(r.curve[metric][1][-1]) for r in running)).mean:.1f}% so far"
        for x, cell in zip(columns.values(), cells, strict=True):
            canvas.text(x, y, cell, ha="right", va="center_baseline")


def draw_summary(runs: Sequence[Run], published: Published, scale: str) -> Any:
    """The seven experiments' best accuracies (what the paper prints), a dot for each seed, bars from the baseline.

    Both panels are as many points wide and their baselines stand at the same place, so that bars compare.
    """
    from matplotlib.figure import Figure as Canvas

    theirs = {name: [n.top1] for name in EXPERIMENTS if (n := published.number((name, VAL)))}
    ours = {name: list(values_by_seed(runs, (name, VAL), "best").values()) for name in EXPERIMENTS}
    rows, depth = _rows()
    canvas = Canvas(figsize=(WIDTH, 4.7))
    panels = {"The paper: Inception-v3, ImageNet": theirs, f"Ours: {scale}, a dot a seed": ours}
    offsets = [v - _level(values) for values in panels.values() for seeds in values.values() for v in seeds]
    least, most = min(0, *offsets), max(0, *offsets)
    for i, (title, values) in enumerate(panels.items()):
        axes = canvas.add_axes((0.265 + i * 0.375, 0.13, 0.345, 0.775))
        axes.set_title(title, pad=8)
        axes.set(ylim=(depth - 0.6, 0.6), yticks=[], xlabel="best top-1 accuracy, %")
        axes.spines["left"].set_visible(False)
        if not any(values.values()):
            axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=FAINT)
            axes.set(xticks=[])
            continue
        room, level = most - least, _level(values)
        axes.set_xlim(level + least - 0.1 * room, level + most + 0.25 * room)  # the numbers need some on the right
        axes.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
        for at, name, text in rows:
            if i == 0:
                where = (-0.68 if name else -0.735, at)
                style: dict[str, Any] = {} if name else {"weight": "bold", "fontsize": 12}
                axes.text(*where, text, transform=axes.get_yaxis_transform(), va="center_baseline", **style)
            if name:
                _draw_dots(axes, at, values[name], HUES[name, VAL], level, 0.035 * room)
        if values[BASELINE[0]]:
            axes.axvline(level, color=HUES[BASELINE], lw=1.2, ls=(0, (4, 3)), zorder=1)
    return canvas


def _rows() -> tuple[list[tuple[float, str | None, str]], float]:
    """Height, experiment (None for a heading) and text of each row, and the last one's height."""
    rows: list[tuple[float, str | None, str]] = []
    y, regime = 1.45, ""
    for experiment in EXPERIMENTS.values():
        if experiment.regime != regime:
            regime = experiment.regime
            y -= 1.45
            rows.append((y, None, regime))
        y -= 1
        rows.append((y, experiment.name, experiment.arm))
    return rows, y


def _level(values: dict[str, list[float]]) -> float:
    """The baseline's mean, or the best experiment's while the baseline has not run."""
    means = {name: sum(seeds) / len(seeds) for name, seeds in values.items() if seeds}
    return means.get(BASELINE[0], max(means.values(), default=0.0))


def _draw_dots(axes: Any, at: float, seeds: list[float], hue: str, level: float, gap: float) -> None:
    if not seeds:
        across = axes.get_yaxis_transform()
        axes.text(0.02, at, "no finished run", transform=across, va="center_baseline", color=FAINT)
        return
    mean = sum(seeds) / len(seeds)
    axes.plot([level, mean], [at, at], color=hue, lw=3, alpha=0.35, solid_capstyle="butt", zorder=2)
    axes.plot(seeds, [at] * len(seeds), "o", color=hue, mec="white", mew=0.8, ms=7.5, zorder=3)
    axes.text(max(*seeds, level) + gap, at, f"{mean:.1f}", va="center_baseline", color=hue)
