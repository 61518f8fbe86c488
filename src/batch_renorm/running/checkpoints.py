"""Checkpoints: the last two and the best, complete or not there; damaged ones are skipped.

Lightning's ModelCheckpoint stays unused: it writes the best one twice, names its files again in each of them, so that a
moved folder loses its best, and leaves what a kill interrupts; its writer does not make files durable.
"""

import io
import zipfile
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from batch_renorm import durable
from batch_renorm.errors import UserError
from batch_renorm.records.config import differences
from batch_renorm.records.curve import accuracies
from batch_renorm.records.folder import Folder
from batch_renorm.running.build import Config, Run, load_run

KEPT = 2


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's file format, written durably; on a full disk a DiskFullError, and nothing of the file is left."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        content = io.BytesIO()  # torch's own writer hides the error of a full disk
        torch.save(checkpoint, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable.whole(path) as temporary:
            temporary.write_bytes(content.getbuffer())


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoint files of a run, newest first."""
    return sorted((folder / "checkpoints").glob("step*.ckpt"), reverse=True)


def newest_readable(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that loads, and newer damaged ones."""
    damaged = list(takewhile(lambda path: not readable(path), checkpoints(folder)))
    return next(iter(checkpoints(folder)[len(damaged) :]), None), damaged


def choose_checkpoint(folder: Folder, config: Config, training: LightningModule) -> tuple[Path | None, list[Path]]:
    """The checkpoint to continue from, and newer damaged ones, which are renamed to `.damaged`.

    Raises:
        UserError: the checkpoint belongs to another config or network.
    """
    for rest in (folder.path / "checkpoints").glob("*.part"):  # left by a start that was killed while writing
        rest.unlink()
    path, damaged = newest_readable(folder.path)
    if path is not None:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if differing := differences(held["config"], config) if "config" in held else []:
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
            intact = archive.testzip() is None
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged file may raise anything in its readers
        return False
    return intact


def how_it_differs(training: LightningModule, held: Any) -> str:
    """How a checkpoint's weights differ from the network's, in a few words; nothing if they fit."""
    if not isinstance(held, dict) or "state_dict" not in held:
        return "it lacks 'state_dict'"
    states = (training.state_dict(), held["state_dict"])
    expected, shapes = ({name: tuple(value.shape) for name, value in state.items()} for state in states)
    name, *others = [name for name in expected | shapes if expected.get(name) != shapes.get(name)] or [""]
    more = f" (and {len(others)} other differences)" if others else ""
    if name in expected and name in shapes:
        return f"{name} has the shape {shapes[name]} instead of {expected[name]}{more}"
    return name and f"it {'lacks' if name in expected else 'has'} {name}{more}"


def load_weights(training: LightningModule, path: Path) -> None:
    """Load a checkpoint's weights and averages into its run; a UserError says why it cannot be."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    if not readable(path):
        raise UserError(f"{path} is damaged, or no checkpoint of a run: name another one (--checkpoint FILE)")
    held = torch.load(path, map_location="cpu", weights_only=True)
    if unlike := how_it_differs(training, held):
        raise UserError(f"{path} is not a checkpoint of this run: {unlike}")
    training.load_state_dict(held["state_dict"])


def step_of(path: Path) -> int:
    """The number of updates before a checkpoint, from its name; best.ckpt is a link to a file with such a name."""
    number = path.resolve().stem.removeprefix("step")
    if not number.isdecimal():
        raise UserError(f"{path} does not say its step: a run's checkpoints are named step00000300.ckpt")
    return int(number)


@rank_zero_only
def remove_old(folder: Folder) -> None:
    """Remove all checkpoints but the last two and the first best of the curve; best.ckpt becomes a link to it."""
    points = accuracies(folder.curve)
    best = max(points, key=points.__getitem__, default=None)
    for age, path in enumerate(checkpoints(folder.path)):
        if step_of(path) == best:
            with suppress(OSError):  # without links in the file system, the file is only under its own name
                (temporary := path.with_name("best.part")).symlink_to(path.name)
                temporary.replace(path.with_name("best.ckpt"))
        elif age >= KEPT:
            path.unlink()


def trained_model(folder: Path, checkpoint: Path | None = None) -> tuple[Run, nn.Module, Path]:
    """A run, its inference model at a checkpoint (default: the newest readable one), and the checkpoint."""
    run = load_run(folder)
    path = checkpoint or newest_readable(folder)[0]
    if path is None:
        raise UserError(f"{folder} has no readable checkpoint: train it first")
    load_weights(run.training, path)
    return run, run.training.inference_model(step_of(path)), path
