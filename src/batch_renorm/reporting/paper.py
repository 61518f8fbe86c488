"""The paper's results as data: experiments, figures, numbers, curves and claimed orderings.

Accuracies are percent (0..100), differences are points, steps are optimiser updates.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[3] / "results/paper"
"""The published numbers and curves, which are in a clone alone: install this package with `pip install -e .`"""

Curve = tuple[np.ndarray, np.ndarray]  # steps, values
Series = tuple[str, str]  # experiment, metric

VAL = "val_top1"
TRAIN = "train_top1"
BATCH_STATISTICS = "val_top1_batch_statistics"
AS_TRAINED = "val_top1_as_trained"  # only ours: normalised and composed as in training
NO_COUNTERPART = "val_top1_no_counterpart"  # only ours: batch statistics of minibatches with each label once
BASELINE: Series = ("iid_batchnorm", VAL)

EXPERIMENTS = {  # with their titles
    "iid_batchnorm": "Batchnorm, i.i.d.",
    "iid_renorm": "Batch Renorm, i.i.d.",
    "micro4_batchnorm": "Batchnorm, groups of 4",
    "micro4_renorm": "Batch Renorm, groups of 4",
    "noniid_batchnorm": "Batchnorm, non-i.i.d.",
    "noniid_halves_batchnorm": "Batchnorm on halves, non-i.i.d.",
    "noniid_renorm": "Batch Renorm, non-i.i.d.",
}

# All series with a curve in the paper, in the order of the tables.
SERIES: dict[Series, str] = {}
for _name, _title in EXPERIMENTS.items():
    SERIES[_name, VAL] = _title
    if _name == "noniid_batchnorm":
        SERIES[_name, TRAIN] = "- its accuracy on training images"
        SERIES[_name, BATCH_STATISTICS] = "- evaluated with batch statistics"

# Curves that the paper does not have; shown if runs have them.
OWN_SERIES: dict[Series, str] = {
    ("noniid_batchnorm", NO_COUNTERPART): "- with batch statistics, each label once",
    ("noniid_batchnorm", AS_TRAINED): "- evaluated as trained",
}


@dataclass(frozen=True)
class Figure:
    title: str
    lines: dict[Series, str]  # curve -> its name in the legend, in drawing order


FIGURES = {
    "fig1": Figure(
        "Figure 1: i.i.d. minibatches",
        {("iid_batchnorm", VAL): "Batchnorm (baseline)", ("iid_renorm", VAL): "Batch Renorm"},
    ),
    "fig2": Figure(
        "Figure 2: normalised in groups of 4",
        {
            # Not in the paper's figure, but its text compares the other two with it.
            ("iid_batchnorm", VAL): "Batchnorm, whole minibatches (baseline)",
            ("micro4_batchnorm", VAL): "Batchnorm, groups of 4",
            ("micro4_renorm", VAL): "Batch Renorm, groups of 4",
        },
    ),
    "fig3": Figure(
        "Figure 3: non-i.i.d. minibatches, 2 images a label",
        {
            ("noniid_batchnorm", VAL): "Batchnorm",
            ("noniid_batchnorm", TRAIN): "Batchnorm, train accuracy",
            ("noniid_batchnorm", BATCH_STATISTICS): "Batchnorm, evaluated with batch statistics",
            ("noniid_halves_batchnorm", VAL): "Batchnorm on half-minibatches",
            ("noniid_renorm", VAL): "Batch Renorm",
        },
    ),
}


@dataclass(frozen=True)
class Claim:
    """`left relation right`, as the paper orders them, with our margin in points.

    ">"  left - right > margin
    ">=" left - right >= -margin: level or better
    "="  |left - right| <= margin: level
    """

    text: str
    left: Series
    relation: str
    right: Series
    margin: float = 0.0

    def range(self) -> tuple[float, float]:
        """The differences left - right, in points, that agree with the claim."""
        low = self.margin if self.relation == ">" else -self.margin
        return low, self.margin if self.relation == "=" else inf

    def agrees(self, difference: float) -> bool:
        low, high = self.range()
        return low < difference if self.relation == ">" else low <= difference <= high


def _claim(text: str, left: str, relation: str, right: str, margin: float = 0.0) -> Claim:
    """A claim of validation accuracies, or of other metrics as experiment/metric."""

    def series(name: str) -> Series:
        experiment, _, metric = name.partition("/")
        return experiment, metric or VAL

    return Claim(text, series(left), relation, series(right), margin)


CLAIMS = (
    _claim("i.i.d.: Batch Renorm at least level with batchnorm", "iid_renorm", ">=", "iid_batchnorm", 1.0),
    _claim("groups of 4: Batch Renorm above batchnorm", "micro4_renorm", ">", "micro4_batchnorm"),
    _claim("batchnorm: groups of 4 at or below whole minibatches", "iid_batchnorm", ">=", "micro4_batchnorm"),
    _claim("Batch Renorm: groups of 4 at or below whole minibatches", "iid_renorm", ">=", "micro4_renorm"),
    _claim("batchnorm: non-i.i.d. below i.i.d.", "iid_batchnorm", ">", "noniid_batchnorm"),
    _claim("batchnorm: non-i.i.d. clearly below i.i.d., by 5 points", "iid_batchnorm", ">", "noniid_batchnorm", 5.0),
    _claim("non-i.i.d.: Batch Renorm above batchnorm", "noniid_renorm", ">", "noniid_batchnorm"),
    _claim("non-i.i.d.: batchnorm on halves above batchnorm", "noniid_halves_batchnorm", ">", "noniid_batchnorm"),
    _claim("batchnorm: non-i.i.d. halves at or below i.i.d.", "iid_batchnorm", ">=", "noniid_halves_batchnorm"),
    _claim("Batch Renorm: non-i.i.d. level with i.i.d.", "noniid_renorm", "=", "iid_renorm", 2.0),
    _claim(
        "non-i.i.d. batchnorm: batch statistics above the normal evaluation",
        f"noniid_batchnorm/{BATCH_STATISTICS}", ">", "noniid_batchnorm",
    ),
    _claim(
        "non-i.i.d. batchnorm: training accuracy below the i.i.d. validation accuracy",
        "iid_batchnorm", ">", f"noniid_batchnorm/{TRAIN}",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Number:
    top1: float  # percent
    at_step: int | None  # if the paper gives it
    printed_in: str  # "section 4.1", "figure 3"


@dataclass(frozen=True)
class Published:
    numbers: dict[Series, list[Number]]
    curves: dict[Series, Curve]

    def number(self, series: Series) -> Number | None:
        """The first number, from the text: all comparisons use it."""
        return next(iter(self.numbers.get(series, [])), None)

    def footnotes(self, lines: Iterable[Series]) -> list[str]:
        """Notes on curves for which the paper prints two numbers."""
        return [
            f"* {numbers[0].top1:.1f}% in the paper's text, which is taken here, {n.top1:.1f}% in its {n.printed_in}"
            for numbers in (self.numbers.get(series, []) for series in lines)
            for n in numbers
            if n.top1 != numbers[0].top1
        ]

    def difference(self, left: Series, right: Series) -> float | None:
        """left minus right of the printed numbers, which are best values."""
        a, b = self.number(left), self.number(right)
        return a.top1 - b.top1 if a and b else None

    def final_difference(self, left: Series, right: Series) -> float | None:
        """left minus right where the curves end: at 140,000 steps, in groups of 4 at 160,000."""
        a, b = self.curves.get(left), self.curves.get(right)
        return float(a[1][-1] - b[1][-1]) if a and b else None


def load_published() -> Published:
    numbers: dict[Series, list[Number]] = {}
    for series, row in _rows("numbers.csv"):
        at_step = int(row["at_step"]) if row["at_step"] else None
        numbers.setdefault(series, []).append(Number(float(row["top1_percent"]), at_step, row["printed_in"]))
    points: dict[Series, list[tuple[float, float]]] = {}
    for series, row in _rows("curves.csv"):
        points.setdefault(series, []).append((float(row["step"]), float(row["top1_percent"])))
    return Published(numbers, {series: (np.array(p)[:, 0], np.array(p)[:, 1]) for series, p in points.items()})


def _rows(name: str) -> Iterator[tuple[Series, dict[str, str]]]:
    with open(FOLDER / name, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield (row["experiment"], row["metric"]), row
