"""A figure of what a minibatch tells a network about one of its images: the runs' mechanism.csv in two panels.

Left: the same images in groups with different other images. Right: how the output of a norm layer depends on the
number of images in the group that show the same letter. scripts/mechanism.py measures both.
"""

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np

from batch_renorm.reporting.paper import EXPERIMENTS, VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import HALF, LEFT, MARK, MIDDLE, canvas_with, draw_key
from batch_renorm.showing.looks import FAINT, Look, look
from batch_renorm.showing.tables import MINUS

COMPANIES = {  # name in mechanism.csv -> label of the axis
    "label again": "the letter\nof its label",
    "neither": "neither of\nits letters",
    "other again": "its other\nletter",
}
SHOWN = ("iid_batchnorm", "noniid_batchnorm", "noniid_halves_batchnorm", "noniid_renorm")
Measured = dict[str, dict[str, float]]  # measure -> at -> value


def read(run: RecordedRun) -> Measured | None:
    """The measurements of a run; None if there are none, or if some cannot be read."""
    measured: Measured = {}
    try:
        with (run.folder / "mechanism.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                measured.setdefault(row["measure"], {})[row["at"]] = float(row["value"])
                if row["theory"]:
                    measured.setdefault("theory", {})[row["at"]] = float(row["theory"])
    except (OSError, KeyError, TypeError, ValueError, csv.Error):  # none, another file, or an incomplete one
        return None
    complete = COMPANIES.keys() <= measured.get("company", {}).keys() and measured.get("output")
    return measured if complete and all(at.isdigit() for at in measured["output"]) and measured.get("theory") else None


def draw_mechanism(runs: Sequence[RecordedRun]) -> Any | None:
    """Draw the figure, with the mean over several seeds; None if no run has measured it."""
    every = {name: [m for run in runs if run.experiment == name and (m := read(run))] for name in SHOWN}
    measured = {name: _mean(found) for name, found in every.items() if found}
    if not measured:
        return None
    canvas = canvas_with("What batchnorm on pairs learns: to look for a letter in the other images", 5.6)
    answers, outputs = canvas.add_axes((LEFT, 0.34, HALF, 0.5)), canvas.add_axes((MIDDLE, 0.34, HALF, 0.5))
    for i, (name, m) in enumerate(measured.items()):
        style = look((name, VAL))
        line: dict[str, Any] = {"color": style.color, "lw": 2.2, "marker": style.mark, **MARK}
        answers.plot(range(len(COMPANIES)), [m["company"][key] for key in COMPANIES], **line)
        outputs.plot(*_by_count(m["output"]), **line)
        draw_key(canvas, *_place(i), style, EXPERIMENTS[name], 12)
    answers.set(xticks=range(len(COMPANIES)), xticklabels=COMPANIES.values(), xlim=(-0.25, 2.25), ylim=(0, 100))
    answers.set(xlabel="one more image of the minibatch shows ...", title="The same images: answered right, %")
    outputs.set_title("Output of a norm layer for a letter")
    counts, theory = _by_count(next(iter(measured.values()))["theory"])
    dashed: dict[str, Any] = {"lw": 1.4, "ls": (0, (4, 3))}
    outputs.plot(counts, theory, color=FAINT, **dashed)
    outputs.set(xticks=counts, ylim=(0, None), xlabel="images k of the group that show the letter")
    group = round(counts[0] * (theory[0] ** 2 + 1))
    formula = f"formula: sqrt(m / k {MINUS} 1), m = {group} images in a group"  # too long for half a row
    draw_key(canvas, *_place(len(measured) + len(measured) % 2), Look(FAINT), formula, 12, **dashed)
    return canvas


def _by_count(values: dict[str, float]) -> tuple[list[int], list[float]]:
    """Numbers of images in ascending order, and their values."""
    counts = sorted(map(int, values))
    return counts, [values[str(k)] for k in counts]


def _place(i: int) -> tuple[float, float]:
    """Where the i-th line of the legend begins."""
    return MIDDLE if i % 2 else LEFT, 0.135 - 0.05 * (i // 2)


def _mean(every: Sequence[Measured]) -> Measured:
    """The mean over seeds of what all of them have."""
    means: Measured = {}
    for measure, values in every[0].items():
        shared = [at for at in values if all(at in m.get(measure, {}) for m in every)]
        means[measure] = {at: float(np.mean([m[measure][at] for m in every])) for at in shared}
    return means
