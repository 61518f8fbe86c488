"""Checkpoints: written whole or not at all, the last two kept, read back past a corrupt one."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm.data.loaders import Pass
from batch_renorm.training.evaluation import Evaluation

KEPT = 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format, made durable: a temporary file, fsync, then a rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoint files of a run, newest first."""
    return sorted((folder / "checkpoints").glob("step*.ckpt"), reverse=True)


def newest_readable(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that loads, and the newer ones that do not."""
    corrupt: list[Path] = []
    for path in checkpoints(folder):
        if readable(path):
            return path, corrupt
        corrupt.append(path)
    return None, corrupt


def readable(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written: torch's files are zip archives with checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def step_of(path: Path) -> int:
    """The number of updates before a checkpoint, from its name."""
    return int(path.stem.removeprefix("step"))


class Checkpoints(Callback):
    """Writes a checkpoint whenever the model has been evaluated or the run is to stop, and keeps the last two."""

    def __init__(self, folder: Path, evaluation: Evaluation) -> None:
        self.folder, self.evaluation = folder, evaluation

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pass, batch_idx: int
    ) -> None:
        step, stop = batch.step + 1, pl_module.stop.decided is not None  # type: ignore[union-attr]
        if not batch.last or not (stop or self.evaluation.due(step, trainer.max_steps)):
            return
        trainer.save_checkpoint(self.folder / "checkpoints" / f"step{step:08d}.ckpt")
        remove_old(self.folder)
        trainer.should_stop = stop


@rank_zero_only
def remove_old(folder: Path) -> None:
    for path in checkpoints(folder)[KEPT:]:
        path.unlink()
