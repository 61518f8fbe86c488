"""The paper's smaller claims, and its hypothesis as a measurement: each is one number per seed with an expected range.

They are decided like the orderings: by the mean over the seeds, and with certainty if the whole 95% interval agrees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from batch_renorm.reporting import paper
from batch_renorm.reporting.lists import CONTROLS, MINIBATCHES
from batch_renorm.reporting.paper import TRAIN, VAL, Curve, Published, Series
from batch_renorm.reporting.recorded import RecordedRun

DISTANCE = "activation_distance"
LATE = 0.1  # "at the end" is the mean over this last fraction of the steps, because a single step is noisy
Runs = Mapping[str, RecordedRun]
"""The finished runs of one seed, by experiment."""


@dataclass(frozen=True)
class Check:
    """`low < value <= high`, for a value of every run or of every pair of runs with the same seed."""

    text: str
    value: Callable[[Runs], float | None]
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
        values = {}
        for seed in sorted({run.seed for run in runs}):
            of_seed = {run.experiment: run for run in runs if run.seed == seed and run.finished}
            if all(name in of_seed for name in self.experiments) and (value := self.value(of_seed)) is not None:
                values[seed] = value
        return values


def drop(curve: Curve | None) -> float | None:
    """From a curve's best value to its last, in points."""
    return None if curve is None else float(curve[1].max() - curve[1][-1])


def checks(published: Published) -> Iterator[Check]:
    for letter, high, said in (("r", 10.0, "a small fraction"), ("d", 0.1, "none")):
        for name in paper.EXPERIMENTS:
            if name.endswith("_renorm"):
                text = f"{letter} clipped at the end: {paper.EXPERIMENTS[name]}"
                value = partial(_late_percent, name, f"{letter}_clipped")
                yield Check(text, value, -inf, high, "%", said, (name,))
    pairs = "noniid_batchnorm"
    for metric, images in ((VAL, ""), (TRAIN, ", on training images")):
        fall = drop(published.curves.get((pairs, metric)))
        text = f"non-i.i.d. batchnorm falls from its best to the end{images}"
        yield Check(
            text, partial(_fall, pairs, metric), 2.0, inf, "points", f"{fall:.1f}" if fall is not None else "", (pairs,)
        )
    suspected, unknown, argued = "suspected, not measured", "not measured", "argued, not measured"
    text = "non-i.i.d. batchnorm: evaluated as trained above the normal evaluation"
    yield _above(text, (pairs, paper.AS_TRAINED), (pairs, VAL), unknown)
    text = "non-i.i.d. batchnorm: batch statistics of pairs above those without counterparts"
    yield _above(text, (pairs, paper.BATCH_STATISTICS), (pairs, paper.NO_COUNTERPART), suspected)
    text = "i.i.d. batchnorm: batch statistics without counterparts above those of pairs"
    yield _above(text, ("iid_batchnorm", paper.NO_COUNTERPART), ("iid_batchnorm", paper.BATCH_STATISTICS), unknown)
    for group in ("micro4", "noniid"):
        text = f"{MINIBATCHES[group]}: activation distance, batchnorm above Batch Renorm"
        yield _above(text, (f"{group}_batchnorm", DISTANCE), (f"{group}_renorm", DISTANCE), argued, unit="")


def own_checks(runs: Sequence[RecordedRun]) -> Iterator[Check]:
    """The checks of our controls that have run.

    GroupNorm does not see the minibatch, so no minibatch changes it. Frozen statistics are the usual remedy where one
    fine-tunes: whoever takes the layer wants to know whether it is better.
    """
    rows, ours = {run.experiment for run in runs}, "not the paper's: our control"
    for group in ("micro4", "noniid"):
        name, level = f"{group}_groupnorm", "iid_groupnorm"
        if {name, level} <= rows:
            text = f"{CONTROLS['groupnorm']}: {MINIBATCHES[group]} level with i.i.d."
            yield Check(text, partial(_difference, (name, VAL), (level, VAL)), -2.0, 2.0, "points", ours, (name, level))
        if {f"{group}_frozen", f"{group}_renorm"} <= rows:
            text = f"{MINIBATCHES[group]}: Batch Renorm above frozen batchnorm"
            yield _above(text, (f"{group}_renorm", VAL), (f"{group}_frozen", VAL), ours)


def _above(text: str, higher: Series, lower: Series, published: str, unit: str = "points") -> Check:
    experiments = tuple(dict.fromkeys((higher[0], lower[0])))
    return Check(text, partial(_difference, higher, lower), 0.0, inf, unit, published, experiments)


def _late_percent(experiment: str, metric: str, runs: Runs) -> float | None:
    """The mean of a fraction over the last steps, in percent."""
    if metric not in runs[experiment].curve:
        return None
    steps, values = runs[experiment].curve[metric]
    return 100 * float(values[steps > (1 - LATE) * steps[-1]].mean())


def _fall(experiment: str, metric: str, runs: Runs) -> float | None:
    return drop(runs[experiment].curve.get(metric))


def _difference(left: Series, right: Series, runs: Runs) -> float | None:
    """The difference between the final values of two experiments."""
    a, b = (runs[experiment].final(metric) for experiment, metric in (left, right))
    return a - b if a is not None and b is not None else None
