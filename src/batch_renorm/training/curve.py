"""curve.csv: what a run measured, in rows of step, metric, value. Everything that reports reads this file."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.training.folder import room_for, write_atomically

HEADER = ["step", "metric", "value"]
BY_THE_CLOCK = ("images_per_second", "seconds_")
"""How metrics begin whose values are measured times: the only ones that the same run gives differently."""


def rewind(path: Path, step: int) -> None:
    """Drop the rows after `step`, and a last row that a killed run left half written.

    A run that resumes from a checkpoint repeats what came after it, so that no row is lost or doubled.
    """
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    rows = [line for line in lines[1:] if line.endswith("\n") and line.count(",") == 2]
    kept = [line for line in rows if int(line.split(",")[0]) <= step]
    write_atomically(path, ",".join(HEADER) + "\n" + "".join(kept))


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    """The whole rows (step, metric, value) in the file's order; none of a file that is not there."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = [line.strip().split(",") for line in lines[1:] if line.endswith("\n")]
    return [(int(step), metric, float(value)) for step, metric, value in rows]


class CurveLogger(Logger):
    """Appends rows to curve.csv; `save` makes them durable, which must happen before a checkpoint counts on them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "curve"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        rows = "".join(f"{step},{name},{value:.6g}\n" for name, value in metrics.items())
        if not self.path.exists():
            rows = ",".join(HEADER) + "\n" + rows
        with room_for(self.path, len(rows)), self.path.open("a") as file:
            file.write(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them."""

    @rank_zero_only
    def save(self) -> None:
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
