"""How rmax and dmax are relaxed from batchnorm, (1, 0), to their final values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """The bounds of r and d as functions of the step.

    Until ``start`` they are batchnorm's (1, 0). Then both grow linearly: rmax reaches its final value
    at ``rmax_end``, dmax at ``dmax_end``. For the paper's 140,000 steps: ``Ramp(5000, 40000, 25000)``.

    Raises:
        ValueError: a ramp that starts before step 0 or ends before it starts; bounds too small.

    Example::

        >>> ramp = Ramp(start=5000, rmax_end=40000, dmax_end=25000)
        >>> ramp(0), ramp(22500), ramp(140000)
        ((1.0, 0.0), (2.0, 4.375), (3.0, 5.0))
    """

    start: float
    rmax_end: float
    dmax_end: float
    rmax: float = 3.0
    dmax: float = 5.0

    def __post_init__(self) -> None:
        if not self.start >= 0:
            raise ValueError(f"the ramp must start at step 0 or later, got start={self.start}")
        for name in ("rmax_end", "dmax_end"):
            if not getattr(self, name) >= self.start:
                raise ValueError(
                    f"the ramp ends before it starts: {name}={getattr(self, name)} is smaller than start={self.start}"
                )
        if not self.rmax >= 1:
            raise ValueError(f"rmax must be at least 1 (1 is batchnorm), got {self.rmax}")
        if not self.dmax >= 0:
            raise ValueError(f"dmax must be at least 0 (0 is batchnorm), got {self.dmax}")

    @classmethod
    def of_length(
        cls,
        steps: int,
        start: float = 5 / 140,
        rmax_end: float = 40 / 140,
        dmax_end: float = 25 / 140,
        rmax: float = 3.0,
        dmax: float = 5.0,
    ) -> "Ramp":
        """The paper's ramp for a run of ``steps`` steps: its knees are fractions of the run."""
        # Multiplying first gives whole steps for the paper's length, not 39999.99...
        start, rmax_end, dmax_end = (round(steps * knee, 6) for knee in (start, rmax_end, dmax_end))
        return cls(start, rmax_end, dmax_end, rmax, dmax)

    def __call__(self, step: float) -> tuple[float, float]:
        """``(rmax, dmax)`` of a step."""
        rmax = 1.0 + (self.rmax - 1.0) * self._progress(step, self.rmax_end)
        return rmax, self.dmax * self._progress(step, self.dmax_end)

    def _progress(self, step: float, end: float) -> float:
        if step >= end:
            return 1.0
        if step <= self.start:
            return 0.0
        return (step - self.start) / (end - self.start)
