"""A figure of what a minibatch tells a network about one of its images: the runs' mechanism.csv in two panels.

Left: the same images in groups with different other images. Right: how the output of a norm layer depends on the
number of images in the group that show the same letter. scripts/mechanism.py measures both.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np

from batch_renorm.reporting.paper import EXPERIMENTS, VAL
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.showing.figures import LEFT, canvas_with, draw_line
from batch_renorm.showing.looks import FAINT, look
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
    answers, outputs = canvas.add_axes((LEFT, 0.34, 0.42, 0.5)), canvas.add_axes((0.58, 0.34, 0.395, 0.5))
    places = np.arange(len(COMPANIES))
    for name, m in measured.items():
        values = np.array([m["company"][key] for key in COMPANIES])
        draw_line(answers, look((name, VAL)), (places, values), lw=2.2, zorder=3)
        answers.plot(places, values, "o", color=look((name, VAL)).color, ms=6, zorder=4)
        ks = np.array(sorted(map(int, m["output"])))
        draw_line(outputs, look((name, VAL)), (ks, np.array([m["output"][str(k)] for k in ks])), lw=2.2, zorder=3)
    answers.set(xticks=places, xticklabels=COMPANIES.values(), xlim=(-0.25, 2.25), ylim=(0, 100))
    answers.set_xlabel("one more image of the minibatch shows ...")
    answers.set_title("The same images: answered right, %", pad=8)
    outputs.set_title("Output of a norm layer for a letter", pad=8)
    theory = next(iter(measured.values()))["theory"]
    counts = sorted(map(int, theory))
    outputs.plot(counts, [theory[str(k)] for k in counts], color=FAINT, lw=1.4, ls=(0, (4, 3)), zorder=2)
    outputs.set(xticks=counts, ylim=(0, None), xlabel="images k of the group that show the letter")
    _legend(canvas, list(measured), group=round(counts[0] * (theory[str(counts[0])] ** 2 + 1)))
    return canvas


def _mean(every: Sequence[Measured]) -> Measured:
    """The mean over seeds of what all of them have."""
    means: Measured = {}
    for measure, values in every[0].items():
        shared = [at for at in values if all(at in m.get(measure, {}) for m in every)]
        means[measure] = {at: float(np.mean([m[measure][at] for m in every])) for at in shared}
    return means


def _legend(canvas: Any, names: Sequence[str], group: int) -> None:
    from matplotlib.lines import Line2D

    formula = f"formula: sqrt(m / k - 1), m = {group} images in a group".replace("-", MINUS)
    lines = [(EXPERIMENTS[name], look((name, VAL)).color, "-") for name in names]
    last = len(names) + len(names) % 2  # the formula is too long for half a row
    for i, (text, color, style) in [*enumerate(lines), (last, (formula, FAINT, "--"))]:
        x, y = LEFT + 0.505 * (i % 2), 0.135 - 0.05 * (i // 2)
        canvas.add_artist(Line2D([x, x + 0.03], [y, y], color=color, ls=style, lw=3 if style == "-" else 1.4))
        canvas.text(x + 0.04, y, text, va="center_baseline", fontsize=12)
