"""Two figures of why batchnorm fails, drawn if runs have measured it.

Activations are the paper's hypothesis as a measurement: the relative L2 distance between a norm layer's outputs in
training and at inference on the same images. The mechanism, which scripts/mechanism.py measures, is what a minibatch
tells a network about one of its images.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from batch_renorm.reporting.checks import DISTANCE
from batch_renorm.reporting.compare import mean_curve
from batch_renorm.reporting.paper import EXPERIMENTS, VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing import figures
from batch_renorm.showing.figures import HALF, LEFT, MARK, MIDDLE, canvas_with, draw_key, draw_line, two_panels
from batch_renorm.showing.looks import FAINT, Look, look
from batch_renorm.showing.tables import MINUS

COMPANIES = {  # name in mechanism.csv -> label of the axis
    "label again": "the letter\nof its label",
    "neither": "neither of\nits letters",
    "other again": "its other\nletter",
}
Measured = dict[tuple[str, str], float]  # (measure, at) -> value


def draw_activations(runs: Sequence[RecordedRun]) -> Any | None:
    """The distance's mean over layers during training, and every layer's at the end; None if no run has measured it.

    From finished runs or, where there are none, from all.
    """
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
        draw_key(canvas, *_place(i, 0.175), style, EXPERIMENTS[name], 12)
    over.set(xlabel="training steps", ylabel="relative L2 distance", ylim=(0, None), xlim=(0, None))
    over.xaxis.set_major_formatter(figures.thousands)
    through.set(xlabel="norm layer, from input to output")
    through.locator_params(axis="x", integer=True)
    return canvas


def draw_mechanism(runs: Sequence[RecordedRun]) -> Any | None:
    """Draw the mean over seeds of the runs' mechanism.csv; None if no run has measured it.

    Left: the same images in groups with different other images. Right: how the output of a norm layer depends on the
    number of images in the group that show the same letter.
    """
    measured = {}
    for name in ("iid_batchnorm", "noniid_batchnorm", "noniid_halves_batchnorm", "noniid_renorm"):
        if every := [values for run in runs if run.experiment == name and (values := _measured(run))]:
            shared = [key for key in every[0] if all(key in values for values in every)]
            measured[name] = {key: fmean(values[key] for values in every) for key in shared}
    if not measured:
        return None
    canvas = canvas_with("What batchnorm on pairs learns: to look for a letter in the other images", 5.6)
    answers, outputs = canvas.add_axes((LEFT, 0.34, HALF, 0.5)), canvas.add_axes((MIDDLE, 0.34, HALF, 0.5))
    for i, (name, m) in enumerate(measured.items()):
        style = look((name, VAL))
        line: dict[str, Any] = {"color": style.color, "lw": 2.2, "marker": style.mark, **MARK}
        answers.plot(range(len(COMPANIES)), [m["company", at] for at in COMPANIES], **line)
        outputs.plot(*_by_count(m, "output"), **line)
        draw_key(canvas, *_place(i, 0.135), style, EXPERIMENTS[name], 12)
    answers.set(xticks=range(len(COMPANIES)), xticklabels=COMPANIES.values(), xlim=(-0.25, 2.25), ylim=(0, 100))
    answers.set(xlabel="one more image of the minibatch shows ...", title="The same images: answered right, %")
    outputs.set_title("Output of a norm layer for a letter")
    counts, theory = _by_count(next(iter(measured.values())), "theory")
    dashed: dict[str, Any] = {"lw": 1.4, "ls": (0, (4, 3))}
    outputs.plot(counts, theory, color=FAINT, **dashed)
    outputs.set(xticks=counts, ylim=(0, None), xlabel="images k of the group that show the letter")
    group = round(counts[0] * (theory[0] ** 2 + 1))
    formula = f"formula: sqrt(m / k {MINUS} 1), m = {group} images in a group"  # too long for half a row
    draw_key(canvas, *_place(len(measured) + len(measured) % 2, 0.135), Look(FAINT), formula, 12, **dashed)
    return canvas


def _place(i: int, first: float) -> tuple[float, float]:
    """Where the i-th line of the legend begins, two a row; the first row is at `first`."""
    return MIDDLE if i % 2 else LEFT, first - 0.05 * (i // 2)


def _measured(run: RecordedRun) -> Measured | None:
    """A run's mechanism.csv; None if there is none, or if it is incomplete or another file."""
    measured: Measured = {}
    try:
        with (run.folder / "mechanism.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                measured[row["measure"], row["at"]] = float(row["value"])
                if row["theory"]:
                    measured["theory", row["at"]] = float(row["theory"])
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None
    complete = measured.keys() >= {*(("company", at) for at in COMPANIES), ("output", "1"), ("theory", "1")}
    return measured if complete else None


def _by_count(measured: Measured, measure: str) -> tuple[list[int], list[float]]:
    """Numbers of images in ascending order, and their values."""
    values = {int(at): value for (name, at), value in measured.items() if name == measure}
    return sorted(values), [values[k] for k in sorted(values)]
