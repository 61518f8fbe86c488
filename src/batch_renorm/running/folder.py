"""The run folder: whether the same command starts, resumes or reports.

Only one process at a time uses a run folder (`claimed`); its files are written whole or not at all (`durable`).
"""

import os
import platform
import subprocess
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from batch_renorm import durable
from batch_renorm.errors import UserError
from batch_renorm.records.config import differences
from batch_renorm.records.folder import Folder, read_mapping

OURS = (
    "config.yaml*", "curve.csv*", "run.json*", "checkpoints", "wandb", "*profile*", "mechanism.csv", "slurm*",
    "to-be-moved-aside-by-job-*", durable.LOCK,
)  # fmt: skip
"""Files that a run folder may contain."""


def with_places(settings: dict[str, Any]) -> dict[str, Any]:
    """The config with ~ in its paths expanded; an empty path, as of an unset shell variable, is a UserError."""

    def place(name: str, path: Any) -> str:
        if not str(path or "").strip():
            raise UserError(f"{name}= is empty: say {name}=PATH (is a variable of the shell not set?)")
        return os.path.expanduser(str(path))

    data = settings["data"]
    if isinstance(data, dict) and "root" in data:
        data = data | {"root": place("data.root", data["root"])}
    return settings | {"folder": place("folder", settings["folder"]), "data": data}


@contextmanager
def claimed(folder: Folder, fresh: bool) -> Iterator[None]:
    """Make the folder and be its only writer; `fresh` first moves an earlier run aside.

    Raises:
        UserError: another process trains there, the folder cannot be written, or `fresh` finds something else there.
    """
    path, cure = folder.path, "wait until it ends, or give this run its own place (folder=...)"
    with ExitStack() as stack:
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"folder={path} is a file: choose another place for the run (folder=...)")
            if fresh and path.is_dir() and any(path.iterdir()):
                set_aside(path)
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(durable.only_writer(path, "the run folder", cure))
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {path}: {error.strerror}; choose another (folder=)"
            ) from error
        yield


def set_aside(path: Path) -> None:
    """Move an earlier run aside; a folder that is in use, or is none of a run, is a UserError."""
    if not is_run(path):
        raise UserError(
            f"fresh=true moves an earlier run aside, and {path} is none: choose another folder (folder=...)"
        )
    with durable.only_writer(path, "the run folder", "fresh=true moves only what is not in use"):
        (move_aside(path) / durable.LOCK).unlink(missing_ok=True)


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder, even one whose start failed at once."""
    with suppress(OSError, ValueError):  # missing, or damaged
        return {"seed", "size", "norm", "minibatch"} <= read_mapping(path / "config.yaml").keys()
    ours = all(any(fnmatch(entry.name, pattern) for pattern in OURS) for entry in path.iterdir())
    return ours or any((path / "checkpoints").glob("step*.ckpt"))


def prepare_folder(folder: Folder, config: dict[str, Any]) -> None:
    """Prepare the folder for a run of this config.

    Raises:
        UserError: the folder holds a run of another config, or a damaged file.
    """
    if folder.config.exists() and (differing := differences(read_mapping(folder.config), config)):
        raise UserError(
            f"{folder.path} holds a run of another config; it differs in {', '.join(differing)}. Give this run its own "
            "place (folder=...), or add fresh=true to move the old one aside"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    for rest in folder.path.glob("*.part"):  # left by a start that was killed while writing
        rest.unlink()
    durable.write_text(folder.config, yaml.safe_dump(config, sort_keys=False))
    if not folder.record():
        folder.write_record(id=uuid.uuid4().hex[:12], started=time.strftime("%Y-%m-%d %H:%M:%S"), wall_seconds=0)


def check_data(folder: Folder, labels: Mapping[str, np.ndarray]) -> None:
    """Note the `labels` of all images by split; a resumed run may read them from another place, but no others.

    Raises:
        UserError: the run began with images of other numbers or labels.
    """
    data = {split: {"images": len(of), "labels": f"{zlib.crc32(of.tobytes()):08x}"} for split, of in labels.items()}
    began_with = folder.record().get("data")
    if began_with is None:
        folder.write_record(data=data)
    elif began_with != data:
        numbers = " and ".join(f"{entry['images']:,} for {split}" for split, entry in began_with.items())
        raise UserError(
            f"{folder.path} holds a run on other images or labels ({numbers}) than those of data.root: name the place "
            "of the same data set, or give this run its own place (folder=...)"
        )


def move_aside(path: Path) -> Path:
    """Rename a run folder to the first free name.old, name.old2, ..."""
    path = Path(os.path.abspath(path))  # . and .. cannot be renamed
    names = (f"{path.name}.old{number}" for number in ("", *range(2, 10**6)))
    target = next(free for name in names if not (free := path.with_name(name)).exists())
    path.rename(target)
    return target


def provenance(device: str) -> dict[str, Any]:
    """What a result depends on in addition to its config: commit, versions, machine."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "numpy")
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "device": device,
        "cores": os.cpu_count(),
    }


def commit() -> str | None:
    """The repository's commit, with a + if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
