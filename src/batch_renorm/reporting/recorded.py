"""A run folder for reports: its config and its measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batch_renorm.reporting.paper import Curve


@dataclass(frozen=True)
class RecordedRun:
    """A run folder. `scale` is its comparison and `experiment` its row; differences.py determines both."""

    folder: Path
    scale: str
    experiment: str
    seed: int
    steps: int | None  # planned
    step: int  # reached
    state: str  # "finished", "running", "failed"; "unknown" without a readable run.json
    curve: dict[str, Curve]  # metric -> steps, values; accuracies in percent
    config: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # run.json
    notes: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()  # from the experiment, for instance ("ramp.rmax=5",)
    data: str | None = None  # the data set's name, if it is not the scale's

    @property
    def of(self) -> str:
        """The experiment without the run's differences."""
        return self.experiment.removesuffix(", " + ", ".join(self.differs)) if self.differs else self.experiment

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def progress(self) -> str:
        return f"{self.state} at step {self.step}" + (f" of {self.steps}" if self.steps else "")

    def final(self, metric: str) -> float | None:
        """The last value, whatever its accuracy."""
        return float(self.curve[metric][1][-1]) if metric in self.curve else None

    def layers(self, metric: str) -> dict[str, Curve]:
        """The curves named `<metric>/<layer>`, by layer, in the order of the file and of the network."""
        return {name.removeprefix(f"{metric}/"): c for name, c in self.curve.items() if name.startswith(f"{metric}/")}

    def training_seconds(self) -> Curve | None:
        """Steps, and the seconds of training until each step, from images_per_second, without evaluations.

        None if the run recorded no speed, or its config does not give the images per step.
        """
        try:
            images = self.config["size"]["workers"] * self.config["minibatch"]["size"]
            steps, speed = self.curve["images_per_second"]
        except (KeyError, TypeError):
            return None
        return steps, np.cumsum(np.diff(steps, prepend=0) * images / speed)

    def best(self, metric: str) -> float | None:
        return float(self.curve[metric][1].max()) if metric in self.curve else None
