"""The paper's hypothesis as a measurement: the distance between activations in training and at inference.

For each norm layer it is the relative L2 distance between its outputs in the two modes on the same images. The figure
shows its mean during training, its final profile through the network, and a map of both for every experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.compare import mean_curve
from batch_renorm.reporting.paper import EXPERIMENTS, VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import LEFT, MARK, WIDTH, draw_line, thousands
from batch_renorm.showing.looks import FAINT, SHADES, Look, is_renorm, look

Distances = tuple[np.ndarray, np.ndarray]
"""Steps (s,), and the mean over seeds (layers, s)."""


def distances(runs: Sequence[RecordedRun], experiment: str) -> Distances | None:
    """From finished runs or, if there are none, from all."""
    measured = [run for run in runs if run.experiment == experiment and run.layers(DISTANCE)]
    measured = [run for run in measured if run.finished] or measured
    layers = [name for run in measured[:1] for name in run.layers(DISTANCE)]
    curves = [mean_curve(measured, f"{DISTANCE}/{name}") for name in layers]
    if not curves or curves[0] is None:
        return None
    steps = curves[0][0]
    return steps, np.stack([np.interp(steps, c[0], c[1]) for c in curves if c is not None])


def draw_activations(runs: Sequence[RecordedRun]) -> Any | None:
    """Draw the figure; None if no run has measured the distances."""
    measured = {name: d for name in EXPERIMENTS if (d := distances(runs, name))}
    if not measured:
        return None
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, 10.2))
    title = "How far activations in training are from those at inference"
    canvas.suptitle(title, x=LEFT, y=0.985, ha="left", va="top", fontsize=15, weight="bold")
    over, through = canvas.add_axes((LEFT, 0.655, 0.42, 0.255)), canvas.add_axes((0.555, 0.655, 0.42, 0.255))
    over.set_title("Over training: mean over layers", pad=8)
    through.set_title("Through the network: at the end", pad=8)
    for name, (steps, values) in measured.items():
        mean = mean_curve([run for run in runs if run.experiment == name], DISTANCE)
        draw_line(over, _look(name), mean[:2] if mean else (steps, values.mean(0)), lw=2, zorder=3)
        draw_line(through, _look(name), (np.arange(1, len(values) + 1), values[:, -1]), lw=2, zorder=3)
    top = max(axes.get_ylim()[1] for axes in (over, through))
    layers = max(len(values) for _, values in measured.values())
    over.set(xlabel="training steps", ylabel="relative L2 distance", ylim=(0, top))
    over.set_xlim(0, max(steps[-1] for steps, _ in measured.values()))
    over.xaxis.set_major_formatter(thousands)
    through.set(xlabel="norm layer, from input to output", ylim=(0, top), xlim=(0.5, layers + 0.5))
    through.tick_params(labelleft=False)
    _legend(canvas, list(measured))
    _maps(canvas, measured)
    return canvas


def _look(name: str) -> Look:
    """The usual look, with a mark also for the pairs, which have none: here all seven experiments share the axes."""
    style = look((name, VAL))
    return replace(style, mark="v") if name.startswith("noniid") and not style.mark else style


def _legend(canvas: Any, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    for i, name in enumerate(names):
        x, y = 0.662, 0.524 - 0.027 * i
        style = _look(name)
        options: dict[str, Any] = {"marker": style.mark, "markevery": [1], **MARK} if style.mark else {}
        canvas.add_artist(Line2D([x, x + 0.017, x + 0.034], [y, y, y], color=style.color, lw=2.5, **options))
        canvas.text(x + 0.045, y, EXPERIMENTS[name].title, va="center_baseline", fontsize=12)


def _maps(canvas: Any, measured: Mapping[str, Distances]) -> None:
    """A map of layers by steps for each experiment, one row per heading, with one scale for all."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    norm = Normalize(0, max(values.max() for _, values in measured.values()))
    shades = {renorm: LinearSegmentedColormap.from_list("", SHADES[renorm]) for renorm in SHADES}
    headings = list(dict.fromkeys(e.heading for e in EXPERIMENTS.values()))
    for row, heading in enumerate(headings):
        canvas.text(LEFT, 0.565 - row * 0.19, heading, weight="bold", fontsize=12)
    for e in EXPERIMENTS.values():
        # Batchnorm on the left, Batch Renorm beside it; the experiment that has no counterpart comes third.
        column = 1 if is_renorm(e.name) else (2 if "halves" in e.name else 0)
        axes = canvas.add_axes((LEFT + column * 0.307, 0.42 - headings.index(e.heading) * 0.19, 0.262, 0.112))
        axes.set_title(e.arm, pad=4, fontsize=11.5)
        axes.grid(False)
        axes.spines[:].set_visible(True)  # the map is white where nothing differs
        if e.name not in measured:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=FAINT)
            axes.set(xticks=[], yticks=[])
            continue
        steps, values = measured[e.name]
        edges = np.concatenate([[0], (steps[1:] + steps[:-1]) / 2, steps[-1:]]), np.arange(len(values) + 1) + 0.5
        axes.pcolormesh(*edges, values, cmap=shades[is_renorm(e.name)], norm=norm, rasterized=True)
        axes.set(yticks=[1, len(values)], ylabel="" if column else "layer")
        axes.tick_params(labelsize=10)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(thousands)
    canvas.text(0.662, 0.318, "In the maps", va="center_baseline", fontsize=12)
    for i, renorm in enumerate((False, True)):
        axes = canvas.add_axes((0.662, 0.29 - 0.019 * i, 0.19, 0.015))
        canvas.colorbar(ScalarMappable(norm, shades[renorm]), cax=axes, orientation="horizontal")
        axes.text(1.05, 0.45, ("Batchnorm", "Batch Renorm")[renorm], transform=axes.transAxes, va="center", fontsize=10)
        axes.tick_params(labelsize=10, labelbottom=renorm, length=3 * renorm)
        axes.locator_params(axis="x", nbins=4)
