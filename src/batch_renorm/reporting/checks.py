"""The paper's smaller claims, and its hypothesis as a measurement: each is one number per seed with an expected range.

They are decided like the orderings: by the mean over the seeds, and with certainty if the whole 95% interval agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from batch_renorm.reporting.paper import (
    AS_TRAINED,
    BATCH_STATISTICS,
    EXPERIMENTS,
    NO_COUNTERPART,
    TRAIN,
    VAL,
    Published,
    Series,
)
from batch_renorm.reporting.recorded import RecordedRun

DISTANCE = "activation_distance"
LATE = 0.1  # "at the end" is the mean over this last fraction of the steps, because a single step is noisy


@dataclass(frozen=True)
class Check:
    """`low < value <= high`, for a value of every run or of every pair of runs with the same seed."""

    text: str
    value: Callable[[dict[str, RecordedRun]], float | None]  # the finished runs of one seed, by experiment
    low: float
    high: float
    unit: str  # "%", "points" or "" (a ratio)
    published: str
    experiments: tuple[str, ...]

    def range(self) -> tuple[float, float]:
        return self.low, self.high

    def agrees(self, value: float) -> bool:
        return self.low < value <= self.high

    @property
    def needed(self) -> str:
        unit = {"points": " points"}.get(self.unit, self.unit)
        if -inf < self.low and self.high < inf:
            return f"within {self.high:g}{unit}"
        return f"≤ {self.high:g}{unit}" if self.high < inf else f"> {self.low:g}{unit}"

    def by_seed(self, runs: Sequence[RecordedRun]) -> dict[int, float]:
        found = {}
        for seed in sorted({run.seed for run in runs}):
            own = {run.experiment: run for run in runs if run.seed == seed and run.finished}
            if all(name in own for name in self.experiments) and (value := self.value(own)) is not None:
                found[seed] = value
        return found


def late_percent(run: RecordedRun, metric: str) -> float | None:
    """The mean of a fraction over the last steps, in percent."""
    if metric not in run.curve:
        return None
    steps, values = run.curve[metric]
    return 100 * float(values[steps > (1 - LATE) * steps[-1]].mean())


def drop(curve: tuple[np.ndarray, np.ndarray] | None) -> float | None:
    """From a curve's best value to its last, in points."""
    return None if curve is None else float(curve[1].max() - curve[1][-1])


def checks(published: Published) -> list[Check]:
    found = []
    for letter, high, theirs in (("r", 10.0, "a small fraction"), ("d", 0.1, "none")):
        for name in EXPERIMENTS:
            if name.endswith("_renorm"):
                text = f"{letter} clipped at the end: {EXPERIMENTS[name].title}"
                found.append(Check(text, _clipped(name, letter), -inf, high, "%", theirs, (name,)))
    for metric, of in ((VAL, ""), (TRAIN, ", on training images")):
        fall = drop(published.curves.get(("noniid_batchnorm", metric)))
        found.append(
            Check(
                f"non-i.i.d. batchnorm falls from its best to the end{of}",
                _fall("noniid_batchnorm", metric),
                2.0, inf, "points", f"{fall:.1f}" if fall is not None else "", ("noniid_batchnorm",),
            )
        )  # fmt: skip
    suspected = "suspected, not measured"
    for title, higher, lower, known in (
        (
            "non-i.i.d. batchnorm: evaluated as trained above the normal evaluation",
            ("noniid_batchnorm", AS_TRAINED), ("noniid_batchnorm", VAL), "not measured",
        ),
        (
            "non-i.i.d. batchnorm: batch statistics of pairs above those without counterparts",
            ("noniid_batchnorm", BATCH_STATISTICS), ("noniid_batchnorm", NO_COUNTERPART), suspected,
        ),
        (
            "i.i.d. batchnorm: batch statistics without counterparts above those of pairs",
            ("iid_batchnorm", NO_COUNTERPART), ("iid_batchnorm", BATCH_STATISTICS), "not measured",
        ),
    ):  # fmt: skip
        found.append(Check(title, _difference(higher, lower), 0.0, inf, "points", known, (higher[0],)))
    for group, minibatches in (("micro4", "groups of 4"), ("noniid", "non-i.i.d.")):
        left, right = f"{group}_batchnorm", f"{group}_renorm"
        text = f"{minibatches}: activation distance, batchnorm above Batch Renorm"
        found.append(
            Check(
                text,
                _difference((left, DISTANCE), (right, DISTANCE)),
                0.0,
                inf,
                "",
                "argued, not measured",
                (left, right),
            )
        )
    return found


def own_checks(runs: Sequence[RecordedRun]) -> list[Check]:
    """The checks of our control, if it has run: it does not see the minibatch, so no minibatch changes it."""
    there, ours = {run.experiment for run in runs}, "not the paper's: our control"
    return [
        Check(
            f"GroupNorm: {minibatches} level with i.i.d.",
            _difference((name, VAL), ("iid_groupnorm", VAL)),
            -2.0, 2.0, "points", ours, (name, "iid_groupnorm"),
        )
        for name, minibatches in (("micro4_groupnorm", "groups of 4"), ("noniid_groupnorm", "non-i.i.d."))
        if {name, "iid_groupnorm"} <= there
    ]  # fmt: skip


def _clipped(name: str, letter: str) -> Callable[[dict[str, RecordedRun]], float | None]:
    return lambda own: late_percent(own[name], f"{letter}_clipped")


def _fall(experiment: str, metric: str) -> Callable[[dict[str, RecordedRun]], float | None]:
    return lambda own: drop(own[experiment].curve.get(metric))


def _difference(left: Series, right: Series) -> Callable[[dict[str, RecordedRun]], float | None]:
    """The difference between the final values of two experiments."""

    def value(own: dict[str, RecordedRun]) -> float | None:
        a, b = (own[experiment].final(metric) for experiment, metric in (left, right))
        return a - b if a is not None and b is not None else None

    return value
