"""The paper's smaller claims, and its hypothesis as a measurement: each is one number per seed with an expected range.

They are decided like the orderings: by the mean over the seeds, and with certainty if the whole 95% interval agrees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from batch_renorm.reporting import paper
from batch_renorm.reporting.lists import CONTROLS, MINIBATCHES
from batch_renorm.reporting.paper import TRAIN, VAL, Published, Series
from batch_renorm.reporting.recorded import RecordedRun

DISTANCE = "activation_distance"


@dataclass(frozen=True)
class Check:
    """`low < value <= high`, for a value of every run, or for the difference between two runs of the same seed."""

    text: str
    value: str  # "final", "fall" or "late_percent" of a RecordedRun
    series: Series
    minus: Series | None
    low: float
    high: float
    unit: str  # "%", "points" or "" (a ratio)
    published: str

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


def checks(published: Published) -> Iterator[Check]:
    for letter, high, said in (("r", 10.0, "a small fraction"), ("d", 0.1, "none")):
        for name, title in paper.EXPERIMENTS.items():
            if name.endswith("_renorm"):
                text, series = f"{letter} clipped at the end: {title}", (name, f"{letter}_clipped")
                yield Check(text, "late_percent", series, None, -inf, high, "%", said)
    pairs = "noniid_batchnorm"
    for metric, images in ((VAL, ""), (TRAIN, ", on training images")):
        text = f"non-i.i.d. batchnorm falls from its best to the end{images}"
        _, values = published.curves[pairs, metric]
        fall = f"{values.max() - values[-1]:.1f}"
        yield Check(text, "fall", (pairs, metric), None, 2.0, inf, "points", fall)
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
            yield Check(text, "final", (name, VAL), (level, VAL), -2.0, 2.0, "points", ours)
        if {f"{group}_frozen", f"{group}_renorm"} <= rows:
            text = f"{MINIBATCHES[group]}: Batch Renorm above frozen batchnorm"
            yield _above(text, (f"{group}_renorm", VAL), (f"{group}_frozen", VAL), ours)


def _above(text: str, higher: Series, lower: Series, published: str, unit: str = "points") -> Check:
    return Check(text, "final", higher, lower, 0.0, inf, unit, published)
