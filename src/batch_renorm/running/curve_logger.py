"""Writing curve.csv: a logger for Lightning, and the rewind of a resumed run."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.errors import UserError
from batch_renorm.records.curve import HEADER, lines_of, parsed
from batch_renorm.running.folder import room_for, write_atomically


def rewind(path: Path, step: int) -> None:
    """Drop the rows after `step`, including half-written ones from a killed run or a power cut.

    A run that resumes from a checkpoint repeats the steps after it, so that no row is lost or doubled.

    Raises:
        UserError: a row up to `step`, which the run would not repeat, is damaged.
    """
    if not path.exists():
        return
    kept, bad = [], None
    for number, line in enumerate(lines_of(path)[1:], 2):
        if (row := parsed(line)) is None:
            bad = bad or number
        elif row[0] <= step:
            if bad is not None:
                raise UserError(f"{path} is damaged in line {bad}: take that line out, or begin again with fresh=true")
            kept.append(line)
    write_atomically(path, ",".join(HEADER) + "\n" + "".join(kept))


class CurveLogger(Logger):
    """Appends rows to curve.csv; `save` makes them durable and must run before the checkpoint is written."""

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
        """Do nothing: config.yaml in the run folder has them."""

    @rank_zero_only
    def save(self) -> None:
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
