"""ILSVRC-2012 as it is handed out: a tar of tars for training, one of files for validation, and the devkit.

Nothing is unpacked: one look at the headers gives the place of every image, and reading is a read there.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch_renorm.data.files import Found, order
from batch_renorm.data.labels import flat_labels

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

Member = tuple[str, int, int]
"""Name, first byte in the archive, bytes."""


class TarFiles:
    """Images in a tar file, by their places in it."""

    def __init__(self, archive: Path, labels: np.ndarray, members: list[Member]) -> None:
        names = pa.array([member[0] for member in members], pa.string())
        by_label = order(labels, names)
        self.archive, self.labels, self.names = str(archive), labels[by_label], names.take(pa.array(by_label))
        self.places = np.array([member[1:] for member in members], dtype=np.int64).reshape(-1, 2)[by_label]
        self._file: int | None = None

    def path(self, index: int) -> str:
        return self.names[index].as_py()

    def name(self, index: int) -> str:
        return f"{self.archive}:{self.path(index)}"

    def read(self, index: int) -> bytes:
        if self._file is None:
            self._file = os.open(self.archive, os.O_RDONLY)
        start, size = self.places[index].tolist()
        data = os.pread(self._file, size, start)  # has no position that processes could share
        if len(data) != size:
            raise OSError(f"the archive ends after {len(data)} of {size} bytes")
        return data

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}


def find(root: Path) -> Found:
    """The official archives in a folder.

    Raises:
        ValueError: one is missing or cut off, or the labels of validation images are.
    """
    if not (root / VAL).exists():
        raise ValueError(f"{root} has {TRAIN} but not {VAL}: download it from image-net.org, too")
    classes, labels, members = train_members(root / TRAIN)
    val = sorted(files_in(root / VAL))
    names = [name for name, _, _ in val]
    splits = {
        "train": TarFiles(root / TRAIN, labels, members),
        "val": TarFiles(root / VAL, flat_labels(names, classes, [root]), val),
    }
    return Found("archives", classes, dict(splits))


def train_members(archive: Path) -> tuple[list[str], np.ndarray, list[Member]]:
    """Classes, labels and places of the images in the tar of tars."""
    inner = sorted(files_in(archive))
    classes = [Path(name).stem for name, _, _ in inner]
    members: list[Member] = []
    counts = []
    with open(archive, "rb") as file:
        for name, start, size in inner:
            part = list(_members(_Part(file, start, size), f"{archive}:{name}"))
            if not part:
                raise ValueError(f"the class {Path(name).stem} has no images: {archive}:{name} is empty")
            counts.append(len(part))
            members += [(inside, start + offset, length) for inside, offset, length in part]
    return classes, np.repeat(np.arange(len(classes)), counts), members


def files_in(archive: Path) -> Iterator[Member]:
    """The files of a tar file."""
    with open(archive, "rb") as file:
        yield from _members(file, str(archive))


def _members(file: io.IOBase, name: str) -> Iterator[Member]:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - tarfile.BLOCKSIZE))
    if any(file.read(tarfile.BLOCKSIZE)):
        raise ValueError(f"{name} is cut off, it has no end mark: download it again")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.offset_data + member.size > end:
                    raise ValueError(f"{name} is cut off in {member.name}: download it again")
                if member.isfile() and not os.path.basename(member.name).startswith("."):
                    yield member.name, member.offset_data, member.size
                archive.members.clear()  # type: ignore[attr-defined]  # a million of them are not needed again
    except tarfile.TarError as error:
        raise ValueError(f"{name} is not a whole tar file ({error}): download it again") from error


class _Part(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: io.IOBase, start: int, size: int) -> None:
        self.file, self.start, self.size, self.place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer) -> int:
        self.file.seek(self.start + self.place)
        data = self.file.read(max(0, min(len(buffer), self.size - self.place)))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)
