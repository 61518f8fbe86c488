"""A run folder for reports, its config and its measurements; and one number per seed of several runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

from batch_renorm.reporting.paper import Curve

LATE = 0.1  # "at the end" is the mean over this last fraction of the steps, because a single step is noisy


@dataclass(frozen=True)
class RecordedRun:
    """A run folder. `scale` is its comparison and `experiment` its row; differences.py determines both."""

    folder: Path
    scale: str
    experiment: str
    seed: int
    steps: int | None  # planned
    step: int  # reached
    state: str  # "finished", "running", "stopped"; "unknown" without a readable run.json
    curve: dict[str, Curve]  # metric -> steps, values; accuracies in percent
    config: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # run.json
    notes: tuple[str, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)  # from its experiment: option -> value
    base_experiment: str = ""  # the experiment without the differences
    data: str | None = None  # the data set's name, if it is not the scale's

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def progress(self) -> str:
        return f"{self.state} at step {self.step}" + (f" of {self.steps}" if self.steps else "")

    # Numbers of a metric that the run has measured:

    def final(self, metric: str) -> float:
        """The last value, whatever its accuracy."""
        return float(self.curve[metric][1][-1])

    def best(self, metric: str) -> float:
        return float(self.curve[metric][1].max())

    def fall(self, metric: str) -> float:
        """From the best value to the last, in points."""
        return self.best(metric) - self.final(metric)

    def late_percent(self, metric: str) -> float:
        """The mean of a fraction over the last steps, in percent."""
        steps, values = self.curve[metric]
        return 100 * float(values[steps > (1 - LATE) * steps[-1]].mean())

    def layers(self, metric: str) -> dict[str, Curve]:
        """The curves named `<metric>/<layer>`, by layer, in the order of the file and of the network."""
        return {name.removeprefix(f"{metric}/"): c for name, c in self.curve.items() if name.startswith(f"{metric}/")}


@dataclass(frozen=True)
class Sample:
    """One number per seed."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None without values."""
        values = tuple(values)
        return cls(values) if values else None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None for one seed."""
        return stdev(self.values) if self.n > 1 else None

    @property
    def range(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's two-sided 95% t-interval; None for one seed."""
        if self.std is None:
            return None
        from scipy.stats import t  # takes half a second to import, and one seed needs none

        half = float(t.ppf(0.975, self.n - 1)) * self.std / sqrt(self.n)
        return self.mean - half, self.mean + half
