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
from batch_renorm.showing.figures import WIDTH, draw_line
from batch_renorm.showing.looks import FAINT, look
from batch_renorm.showing.tables import MINUS

FILE = "mechanism.csv"
COMPANIES = {  # name in mechanism.csv -> label of the axis
    "label again": "the letter\nof its label",
    "neither": "neither of\nits letters",
    "other again": "its other\nletter",
}
SHOWN = ("iid_batchnorm", "noniid_batchnorm", "noniid_halves_batchnorm", "noniid_renorm")
Measured = dict[str, dict[str, float]]  # measure -> at -> value


def read(run: RecordedRun) -> Measured | None:
    """The measurements of a run; None if there are none, or if some cannot be read."""
    path = run.folder / FILE
    if not path.is_file():
        return None
    found: Measured = {}
    with path.open(newline="") as file:
        try:
            for row in csv.DictReader(file):
                found.setdefault(row["measure"], {})[row["at"]] = float(row["value"])
                if row["theory"]:
                    found.setdefault("theory", {})[row["at"]] = float(row["theory"])
        except (KeyError, TypeError, ValueError, csv.Error):  # another file with this name, or an incomplete one
            return None
    whole = COMPANIES.keys() <= found.get("company", {}).keys() and found.get("output") and found.get("theory")
    return found if whole and all(at.isdigit() for at in found["output"]) else None


def draw_mechanism(runs: Sequence[RecordedRun]) -> Any | None:
    """Draw the figure, with the mean over several seeds; None if no run has measured it."""
    measured = {name: _mean([m for run in runs if run.experiment == name and (m := read(run))]) for name in SHOWN}
    measured = {name: m for name, m in measured.items() if m}
    if not measured:
        return None
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(WIDTH, 5.6))
    canvas.suptitle(
        "What batchnorm on pairs learns: to look for a letter in the other images",
        x=0.075, y=0.975, ha="left", va="top", fontsize=14, weight="bold",
    )  # fmt: skip
    answers, outputs = canvas.add_axes((0.075, 0.34, 0.42, 0.5)), canvas.add_axes((0.58, 0.34, 0.395, 0.5))
    answers.set_title("The same images: answered right, %", pad=8)
    places = np.arange(len(COMPANIES))
    for name, m in measured.items():
        values = np.array([m["company"][key] for key in COMPANIES])
        draw_line(answers, look((name, VAL)), (places, values), lw=2.2, zorder=3)
        answers.plot(places, values, "o", color=look((name, VAL)).light, ms=6, zorder=4)
        ks = np.array(sorted(map(int, m["output"])))
        draw_line(outputs, look((name, VAL)), (ks, np.array([m["output"][str(k)] for k in ks])), lw=2.2, zorder=3)
    answers.set(xticks=places, xticklabels=COMPANIES.values(), xlim=(-0.25, 2.25), ylim=(0, 100))
    answers.set_xlabel("one more image of the minibatch shows ...")
    outputs.set_title("Output of a norm layer for a letter", pad=8)
    theory = next(iter(measured.values()))["theory"]
    counts = sorted(map(int, theory))
    outputs.plot(counts, [theory[str(k)] for k in counts], color=FAINT, lw=1.4, ls=(0, (4, 3)), zorder=2)
    outputs.set(xticks=counts, ylim=(0, None), xlabel="images k of the group that show the letter")
    _legend(canvas, list(measured), group=round(counts[0] * (theory[str(counts[0])] ** 2 + 1)))
    return canvas


def _mean(found: list[Measured]) -> Measured:
    if not found:
        return {}
    return {
        measure: {
            at: float(np.mean([m[measure][at] for m in found])) for at in values if all(at in m[measure] for m in found)
        }
        for measure, values in found[0].items()
        if all(measure in m for m in found)
    }


def _legend(canvas: Any, names: list[str], group: int) -> None:
    from matplotlib.lines import Line2D

    last = len(names) + len(names) % 2  # the formula is too long for half a row
    for i, name in [*enumerate(names), (last, None)]:
        x, y = 0.075 + 0.505 * (i % 2), 0.135 - 0.05 * (i // 2)
        hue = look((name, VAL)).light if name else FAINT
        style: dict[str, Any] = {"color": hue, "lw": 3} if name else {"color": hue, "lw": 1.4, "ls": (0, (4, 3))}
        canvas.add_artist(Line2D([x, x + 0.03], [y, y], **style))
        text = (
            EXPERIMENTS[name].title
            if name
            else f"formula: sqrt(m / k - 1), m = {group} images in a group".replace("-", MINUS)
        )
        canvas.text(x + 0.04, y, text, va="center_baseline", fontsize=12)
