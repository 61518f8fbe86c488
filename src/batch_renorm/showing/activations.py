"""The paper's hypothesis as a measurement: the distance between activations in training and at inference.

For each norm layer it is the relative L2 distance between its outputs in the two modes on the same images. The figure
shows its mean over layers during training, and every layer's at the end.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.compare import mean_curve
from batch_renorm.reporting.paper import EXPERIMENTS, VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import LEFT, MIDDLE, canvas_with, draw_key, draw_line, thousands, two_panels
from batch_renorm.showing.looks import look


def draw_activations(runs: Sequence[RecordedRun]) -> Any | None:
    """Draw the figure, from finished runs or, where there are none, from all; None if no run has measured it."""
    measured = {}
    for name in EXPERIMENTS:
        having = [run for run in runs if run.experiment == name and DISTANCE in run.curve and run.layers(DISTANCE)]
        having = [run for run in having if run.finished] or having
        if having and (mean := mean_curve(having, DISTANCE)):
            layers = [[values[-1] for _, values in run.layers(DISTANCE).values()] for run in having]
            shared = min(map(len, layers))
            measured[name] = mean, np.mean([values[:shared] for values in layers], axis=0)
    if not measured:
        return None
    canvas = canvas_with("How far activations in training are from those at inference", 5.3)
    titles = "Over training: mean over layers", "Through the network: at the end"
    over, through = two_panels(canvas, 0.34, 0.5, *titles)
    for i, (name, (mean, last)) in enumerate(measured.items()):
        style = look((name, VAL))
        if name.startswith("noniid") and not style.mark:  # only here do all seven experiments share their axes
            style = replace(style, mark="v")
        draw_line(over, style, mean[:2], lw=2, zorder=3)
        draw_line(through, style, (np.arange(1, len(last) + 1), last), lw=2, zorder=3)
        draw_key(canvas, MIDDLE if i % 2 else LEFT, 0.175 - 0.05 * (i // 2), style, EXPERIMENTS[name], 12)
    over.set(xlabel="training steps", ylabel="relative L2 distance", ylim=(0, None), xlim=(0, None))
    over.xaxis.set_major_formatter(thousands)
    through.set(xlabel="norm layer, from input to output")
    through.locator_params(axis="x", integer=True)
    return canvas
