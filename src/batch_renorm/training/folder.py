"""The run folder: its config, its record, and whether the same command starts, resumes or reports."""

import errno
import json
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from batch_renorm.training.errors import DiskFullError

NOT_SCIENCE = ("trainer", "logger", "fresh", "folder")
"""Config sections that may differ between the parts of one run: they cannot change what is trained."""


@dataclass(frozen=True)
class Folder:
    """A run's place on disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def curve(self) -> Path:
        return self.path / "curve.csv"

    @property
    def record_file(self) -> Path:
        return self.path / "run.json"

    def record(self) -> dict[str, Any]:
        """What run.json says; empty before the first start."""
        return json.loads(self.record_file.read_text()) if self.record_file.exists() else {}

    def write_record(self, **entries: Any) -> None:
        """Change entries of run.json, atomically."""
        write_atomically(self.record_file, json.dumps(self.record() | entries, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    with room_for(path, len(text.encode()), temporary):
        temporary.write_text(text)
        temporary.replace(path)


@contextmanager
def room_for(path: Path, size: int, temporary: Path | None = None) -> Iterator[None]:
    """Around writing `size` bytes of a file: where the disk is full, say so, and leave no temporary file.

    Raises:
        DiskFullError: instead of the OSError of a full disk or an exhausted quota.
    """
    try:
        yield
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(path, max(1, size - shutil.disk_usage(path.parent).free)) from error


def prepare(folder: Folder, config: dict[str, Any], fresh: bool) -> None:
    """Make the folder ready for a run of this config.

    Raises:
        ValueError: the folder holds a run of another config, or cannot be written.
    """
    if fresh and folder.path.exists():
        move_aside(folder.path)
    if folder.config.exists():
        differing = differences(yaml.safe_load(folder.config.read_text()), config)
        if differing:
            raise ValueError(
                f"{folder.path} holds a run of another config; it differs in {', '.join(differing)}. Give this "
                "run its own place (folder=...), or add fresh=true to move the old one aside"
            )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.config, yaml.safe_dump(config, sort_keys=False))
        if not folder.record():
            folder.write_record(id=uuid.uuid4().hex[:12], started=time.strftime("%Y-%m-%d %H:%M:%S"), wall_seconds=0)
    except OSError as error:
        raise ValueError(
            f"cannot write the run folder {folder.path}: {error.strerror}; choose another (folder=...)"
        ) from error


def move_aside(path: Path) -> Path:
    """Rename a run folder to the first free name.old, name.old2, ..."""
    number = 1
    while (target := path.with_name(f"{path.name}.old{number if number > 1 else ''}")).exists():
        number += 1
    path.rename(target)
    return target


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the leaves of two configs that differ, where that means another run."""
    old_leaves, new_leaves = (dict(leaves({k: v for k, v in c.items() if k not in NOT_SCIENCE})) for c in (old, new))
    missing = object()
    return sorted(
        name for name in old_leaves | new_leaves if old_leaves.get(name, missing) != new_leaves.get(name, missing)
    )


def leaves(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Every leaf of a nested config with its dotted name."""
    if not isinstance(config, dict):
        return [(prefix, config)]
    return [leaf for key, value in config.items() for leaf in leaves(value, f"{prefix}.{key}" if prefix else str(key))]


def provenance(device: str) -> dict[str, Any]:
    """What a result depends on besides its config: commit, versions, machine."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "timm", "numpy")
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "device": device,
        "cores": os.cpu_count(),
    }


def commit() -> str | None:
    """The repository's commit, with a + where files differ from it; None outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
