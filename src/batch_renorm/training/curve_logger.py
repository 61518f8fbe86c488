"""Lightning's way to curve.csv."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.training.curve import HEADER
from batch_renorm.training.folder import room_for


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
