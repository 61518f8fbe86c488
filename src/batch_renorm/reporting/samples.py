"""One number per seed: mean, spread and the mean's interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

# The 97.5% quantile of Student's t for 1, 2, ... 30 degrees of freedom. Above 30 the last is used, slightly too wide.
T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One number per seed."""

    values: tuple[float, ...]

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
        half = T975[min(self.n - 1, len(T975)) - 1] * self.std / sqrt(self.n)
        return self.mean - half, self.mean + half
