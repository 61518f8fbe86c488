"""The paper's hypothesis as a measurement: the distance between activations in training and at inference.

For each norm layer it is the relative L2 distance between its outputs in the two modes on the same images. The figure
shows its mean during training, its final profile through the network, and a map of both for every experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.compare import mean_curve
from batch_renorm.reporting.paper import EXPERIMENTS, VAL, Experiment
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import MARK, WIDTH, draw_line
from batch_renorm.showing.looks import FAINT, SHADES, Look, is_renorm, look


def distances(runs: Sequence[RecordedRun], experiment: str) -> tuple[np.ndarray, list[str], np.ndarray] | None:
    """steps (s,), layers (l,) and the mean over seeds (l, s), from finished runs or, if there are none, from all."""
    own = [run for run in runs if run.experiment == experiment and run.layers(DISTANCE)]
    own = [run for run in own if run.finished] or own
    if not own:
        return None
    layers = [name for name in own[0].layers(DISTANCE) if all(name in run.layers(DISTANCE) for run in own)]
    curves = [mean_curve(own, f"{DISTANCE}/{name}") for name in layers]
    steps = curves[0][0] if curves and curves[0] else np.array([])
    rows = [np.interp(steps, c[0], c[1]) for c in curves if c is not None]
    return (steps, layers, np.stack(rows)) if rows and len(steps) else None


def draw_activations(runs: Sequence[RecordedRun]) -> Any | None:
    """Draw the figure; None if no run has measured the distances."""
    found = {name: d for name in EXPERIMENTS if (d := distances(runs, name))}
    if not found:
        return None
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, 10.2))
    canvas.suptitle(
        "How far activations in training are from those at inference",
        x=0.075, y=0.985, ha="left", va="top", fontsize=15, weight="bold",
    )  # fmt: skip
    over, through = canvas.add_axes((0.075, 0.655, 0.405, 0.255)), canvas.add_axes((0.57, 0.655, 0.405, 0.255))
    over.set_title("Over training: mean over layers", pad=8)
    through.set_title("Through the network: at the end", pad=8)
    for name, (steps, _, values) in found.items():
        mean = mean_curve([run for run in runs if run.experiment == name], DISTANCE)
        draw_line(over, _look(name), mean[:2] if mean else (steps, values.mean(0)), lw=2, zorder=3)
        draw_line(through, _look(name), (np.arange(1, len(values) + 1), values[:, -1]), lw=2, zorder=3)
    over.set(xlabel="training steps", ylabel="relative L2 distance", ylim=(0, None))
    over.set_xlim(0, max(steps[-1] for steps, _, _ in found.values()))
    over.xaxis.set_major_formatter(_thousands)
    layers = max(len(values) for _, _, values in found.values())
    through.set(xlabel="norm layer, from input to output", ylim=(0, None), xlim=(0.5, layers + 0.5))
    _legend(canvas, list(found))
    _maps(canvas, found)
    return canvas


def _thousands(step: float, _: object) -> str:
    return f"{step / 1000:g}k" if step else "0"


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
        canvas.add_artist(Line2D([x, x + 0.017, x + 0.034], [y, y, y], color=style.light, lw=2.5, **options))
        canvas.text(x + 0.045, y, EXPERIMENTS[name].title, va="center_baseline", fontsize=12)


def _maps(canvas: Any, found: dict[str, tuple[np.ndarray, list[str], np.ndarray]]) -> None:
    """A map of layers by steps for each experiment, one row per heading, with one scale for all."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    norm = Normalize(0, max(values.max() for _, _, values in found.values()))
    maps = {renorm: LinearSegmentedColormap.from_list("", SHADES[renorm]) for renorm in SHADES}
    rows: dict[str, list[Experiment]] = {}
    for e in EXPERIMENTS.values():
        rows.setdefault(e.heading, []).append(e)
    for row, (heading, experiments) in enumerate(rows.items()):
        bottom = 0.42 - row * 0.19
        canvas.text(0.075, bottom + 0.145, heading, weight="bold", fontsize=12)
        for e in experiments:
            # Batchnorm on the left, Batch Renorm beside it; the experiment that has no counterpart comes third.
            column = 1 if is_renorm(e.name) else (2 if "halves" in e.name else 0)
            axes = canvas.add_axes((0.075 + column * 0.307, bottom, 0.262, 0.112))
            axes.set_title(e.arm, pad=4, fontsize=11.5)
            axes.grid(False)
            axes.spines[:].set_visible(True)  # the map is white where nothing differs
            if e.name not in found:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=FAINT)
                axes.set(xticks=[], yticks=[])
                continue
            steps, layers, values = found[e.name]
            edges = np.concatenate([[0], (steps[1:] + steps[:-1]) / 2, steps[-1:]])
            shade = maps[is_renorm(e.name)]
            axes.pcolormesh(edges, np.arange(len(layers) + 1) + 0.5, values, cmap=shade, norm=norm, rasterized=True)
            axes.set_yticks([1, len(layers)])
            axes.tick_params(labelsize=10)
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter(_thousands)
            if column == 0:
                axes.set_ylabel("layer", fontsize=11, labelpad=0)
    canvas.text(0.662, 0.318, "In the maps", va="center_baseline", fontsize=12)
    for i, renorm in enumerate((False, True)):
        axes = canvas.add_axes((0.662, 0.29 - 0.019 * i, 0.19, 0.015))
        canvas.colorbar(ScalarMappable(norm, maps[renorm]), cax=axes, orientation="horizontal")
        axes.text(1.05, 0.45, ("Batchnorm", "Batch Renorm")[renorm], transform=axes.transAxes, va="center", fontsize=10)
        axes.tick_params(labelsize=10, labelbottom=renorm, length=3 * renorm)
        axes.locator_params(axis="x", nbins=4)
