"""ILSVRC-2012's official archives: a tar of tars for training, a tar of files for validation, and the devkit.

Nothing is unpacked: the headers give the place of every image in its archive, and images are read there.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch_renorm.data.files import Found, is_image, looks_like, order, stem
from batch_renorm.data.labels import flat_labels
from batch_renorm.errors import UserError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

Member = tuple[str, int, int]
"""Name, first byte in the archive, number of bytes."""

COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK": "unzip",
}


class TarFiles:
    """Images in a tar file, read at their places in it."""

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
        data = os.pread(self._file, size, start)  # uses no file position, which processes would share
        if len(data) != size:
            raise OSError(f"the archive ends after {len(data)} of {size} bytes: download it again")
        return data

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}


def find(root: Path) -> Found:
    """The official archives in a folder, also if repacked as folders of classes.

    Raises:
        UserError: an archive or the labels of validation images are missing, truncated or something else.
    """
    if not (root / VAL).exists():
        raise UserError(f"{root} has {TRAIN} but not {VAL}: download it from image-net.org, too")
    classes, labels, members = train_members(root / TRAIN)
    val = sorted((member for member in files_in(root / VAL) if is_image(member[0])), key=lambda m: (stem(m[0]), m[0]))
    if not val:
        raise UserError(f"{root / VAL} has no images: download it again")
    splits = {
        "train": TarFiles(root / TRAIN, labels, members),
        "val": TarFiles(root / VAL, val_labels([name for name, _, _ in val], classes, root), val),
    }
    return Found("archives", classes, dict(splits))


def train_members(archive: Path) -> tuple[list[str], np.ndarray, list[Member]]:
    """Classes, labels and places of the images in a tar that has a tar, or a folder, for each class."""
    every = sorted(files_in(archive))
    inner = [member for member in every if member[0].endswith(".tar")]
    images = [member for member in every if is_image(member[0])]
    if bool(inner) == bool(images):
        what = "both archives of classes and images" if inner else "neither archives nor folders of classes"
        raise UserError(f"{archive} has {what}: it should be a tar of n01440764.tar and so on, as image-net.org has it")
    by_class: dict[str, list[Member]] = {}
    with open(archive, "rb") as file:
        for name, start, size in inner:
            wnid = Path(name).stem
            if wnid in by_class:
                raise UserError(f"{archive} has the class {wnid} twice: download it again")
            part = _members(_Part(file, start, size), f"{archive}:{name}")
            by_class[wnid] = [(inside, start + at, length) for inside, at, length in part if is_image(inside)]
            if not by_class[wnid]:
                raise UserError(f"the class {wnid} has no images: {archive}:{name} is empty")
    for member in images:
        wnid = Path(member[0]).parent.name
        if not wnid:
            raise UserError(f"{archive} has {member[0]} in no folder of a class: pack the folders of classes")
        by_class.setdefault(wnid, []).append(member)
    classes = sorted(by_class)
    labels = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
    return classes, labels, [member for name in classes for member in by_class[name]]


def val_labels(names: list[str], classes: list[str], root: Path) -> np.ndarray:
    """Labels from the devkit, from a list, or from the folders of a repacked archive."""
    folders = [Path(name).parent.name for name in names]
    position = {name: label for label, name in enumerate(classes)}
    sorted_out = sum(folder in position for folder in folders)
    if 0 < sorted_out < len(names):
        raise UserError(
            f"{root / VAL} has {sorted_out:,} of {len(names):,} images in folders of classes: all must be, or none"
        )
    return np.array([position[f] for f in folders]) if sorted_out else flat_labels(names, classes, [root])


def files_in(archive: Path) -> Iterator[Member]:
    """The files of a tar file.

    Raises:
        UserError: the file cannot be read, is not a tar file, or is truncated.
    """
    try:
        with open(archive, "rb") as file:
            yield from _members(file, str(archive))
    except OSError as error:
        raise UserError(f"cannot read {archive}: {error.strerror or error}") from error


def _members(file: io.IOBase, name: str) -> Iterator[Member]:
    again = "download it again"
    begin = file.read(8)
    tool = next((tool for mark, tool in COMPRESSED.items() if begin.startswith(mark)), None)
    if tool is not None:
        raise UserError(f"{name} is compressed: unpack it first ({tool}), images are read out of it at any place")
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - tarfile.BLOCKSIZE))
    if any(file.read(tarfile.BLOCKSIZE)):
        raise UserError(f"{name} {looks_like(name) or 'is cut off, it has no end mark'}: {again}")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.offset_data + member.size > end:
                    raise UserError(f"{name} is cut off in {member.name}: {again}")
                if member.isfile() and not os.path.basename(member.name).startswith("."):
                    yield member.name, member.offset_data, member.size
                archive.members.clear()  # type: ignore[attr-defined]  # a million of them are not needed again
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile treats a damaged header as the end
                raise UserError(f"{name} is damaged at byte {archive.offset:,}: {again}")
    except UserError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        reason = looks_like(name) or f"is not a whole tar file ({error})"
        raise UserError(f"{name} {reason}: {again}") from error


class _Part(io.RawIOBase):
    """A part of an open file, readable as a separate file."""

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
