"""Checkpoints: the last two and the best, complete or not there; damaged ones are skipped.

Lightning's ModelCheckpoint stays unused: it writes the best one twice, names its files again in each of them, so that a
moved folder loses its best, and leaves what a kill interrupts; its writer does not make files durable.
"""

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from batch_renorm import durable
from batch_renorm.errors import UserError
from batch_renorm.running.build import Config, Run, load_run
from batch_renorm.running.folder import Folder, differences, room_for

KEPT = 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format, written durably: a temporary file, fsync, a rename, fsync of the folder.

    Raises:
        DiskFullError: the file does not fit on the disk; nothing of it is left, and earlier files are unchanged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        content = io.BytesIO()  # its size tells how much space is missing on a full disk
        torch.save(checkpoint, content)
        with room_for(path, content.getbuffer().nbytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            with durable.whole(path) as temporary:
                temporary.write_bytes(content.getbuffer())


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoint files of a run, newest first."""
    return sorted((folder / "checkpoints").glob("step*.ckpt"), reverse=True)


def newest_readable(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that loads, and newer damaged ones."""
    damaged: list[Path] = []
    for path in checkpoints(folder):
        if readable(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def choose_checkpoint(folder: Folder, config: Config, training: LightningModule) -> tuple[Path | None, list[Path]]:
    """The checkpoint to continue from, and newer damaged ones, which are renamed to `.damaged`.

    Raises:
        UserError: the checkpoint belongs to another config or network; the message names the differences.
    """
    for rest in (folder.path / "checkpoints").glob("*.part"):  # left by a start that was killed while writing
        rest.unlink()
    path, damaged = newest_readable(folder.path)
    if path is not None:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        known = held.get("config") if isinstance(held, dict) else None
        if differing := differences(known, config) if isinstance(known, dict) else []:
            raise UserError(
                f"{path} is the checkpoint of another config; it differs in {', '.join(differing)}. Move it away, or "
                "add fresh=true to move the whole run aside"
            )
        if unlike := how_it_differs(training, held):
            raise UserError(
                f"{path} is not a checkpoint of this run's network: {unlike}. Continue with the commit that run.json "
                "names, or add fresh=true to move the whole run aside"
            )
    for other in damaged:
        other.replace(other.with_suffix(".damaged"))
    return path, damaged


def readable(path: Path) -> bool:
    """Whether a checkpoint loads and its checksums are right: torch's files are zip archives with checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return True
    except Exception:  # a damaged file may raise anything in its readers
        return False


def how_it_differs(training: LightningModule, held: Any) -> str:
    """How a checkpoint's weights differ from the network's, in a few words; nothing if they fit."""
    state, expected = held.get("state_dict") if isinstance(held, dict) else None, training.state_dict()
    if not isinstance(state, dict):
        return "it lacks 'state_dict'"
    unlike = [f"it lacks {name}" for name in expected if name not in state]
    unlike += [f"it has {name}" for name in state if name not in expected]
    unlike += [
        f"{name} has the shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    more = f" (and {len(unlike) - 1} other differences)" if len(unlike) > 1 else ""
    return unlike[0] + more if unlike else ""


def load_weights(training: LightningModule, path: Path) -> None:
    """Load a checkpoint's weights and averages into its run.

    Raises:
        UserError: the file cannot be read, or belongs to another run; the message says why.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    if not readable(path):
        raise UserError(f"{path} is damaged, or no checkpoint of a run: name another one (--checkpoint FILE)")
    held = torch.load(path, map_location="cpu", weights_only=True)
    if unlike := how_it_differs(training, held):
        raise UserError(f"{path} is not a checkpoint of this run: {unlike}")
    training.load_state_dict(held["state_dict"])


def step_of(path: Path) -> int:
    """The number of updates before a checkpoint, from its name; best.ckpt is a link to a file with such a name.

    Raises:
        UserError: the file has another name.
    """
    number = path.resolve().stem.removeprefix("step")
    if not number.isdecimal():
        raise UserError(f"{path} does not say its step: a run's checkpoints are named step00000300.ckpt")
    return int(number)


def write(trainer: Trainer, folder: Path, step: int, best: int | None) -> None:
    """Write the checkpoint after `step` updates, called by all ranks; :func:`remove_old` removes old ones.

    Args:
        best: the first step with the highest val_top1; None before the first evaluation.
    """
    trainer.save_checkpoint(folder / "checkpoints" / f"step{step:08d}.ckpt")
    remove_old(folder, best)


@rank_zero_only
def remove_old(folder: Path, best: int | None) -> None:
    """Remove all checkpoints but the last two and the best; best.ckpt becomes a link to the best."""
    for age, path in enumerate(checkpoints(folder)):
        if best is not None and step_of(path) == best:
            with suppress(OSError):  # without links in the file system, the file is only under its own name
                (temporary := path.with_name("best.part")).symlink_to(path.name)
                temporary.replace(path.with_name("best.ckpt"))
        elif age >= KEPT:
            path.unlink()


def trained_model(folder: Path, checkpoint: Path | None = None) -> tuple[Run, nn.Module, Path]:
    """A run, its inference model at a checkpoint (default: the newest readable one), and the checkpoint.

    Raises:
        UserError: the folder has no run or no readable checkpoint.
    """
    run = load_run(folder)
    path = checkpoint or newest_readable(folder)[0]
    if path is None:
        raise UserError(f"{folder} has no readable checkpoint: train it first")
    load_weights(run.training, path)
    return run, run.training.inference_model(step_of(path)), path
