"""ILSVRC-2012's official archives: a tar of tars for training, a tar of files for validation.

Nothing is unpacked: tarfile reads the headers once, and images are read at their places in the archive.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from batch_renorm.data.files import PlainFiles, is_image, printable, reading
from batch_renorm.errors import UserError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
AGAIN = "download it again"

Place = Sequence[int]
"""First byte in the archive, number of bytes."""


class TarFiles(PlainFiles):
    """Images in a tar file, read at their places in it."""

    SEPARATOR = ":"

    def __init__(self, archive: Path, labels: np.ndarray, names: list[str], places: dict[str, Place]) -> None:
        super().__init__(archive, labels, names)
        self.places = np.array([places[name] for name in names], dtype=np.int64)
        self._file: int | None = None

    def read_once(self, index: int) -> bytes:
        if self._file is None:
            self._file = os.open(self.root, os.O_RDONLY)
        start, size = self.places[self.rows[index]].tolist()
        data = os.pread(self._file, size, start)  # uses no file position, which processes would share
        if len(data) != size:
            raise OSError(f"the archive ends after {len(data)} of {size} bytes: {AGAIN}")
        return data

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}


def images_in(archive: Path) -> tuple[dict[str, list[str]], list[str], dict[str, Place]]:
    """The names of the images in each tar in a tar, of those beside the tars, and the places of all.

    Raises:
        UserError: the archive cannot be read.
    """
    by_class: dict[str, list[str]] = {}
    beside: list[str] = []
    places: dict[str, Place] = {}
    with reading(archive, "a whole tar file, uncompressed", AGAIN), archive.open("rb") as file:
        for name, start, size in _members(file, str(archive)):
            if name.endswith(".tar"):
                members = _members(file, f"{archive}:{name}", start, size)
                inner = {f"{name}/{member}": place for member, *place in members}
                if (wnid := Path(name).stem) in by_class:
                    raise UserError(f"{archive} has the class {printable(wnid)} twice: {AGAIN}")
                by_class[wnid] = list(filter(is_image, inner))
                places |= inner
            elif is_image(name):
                beside.append(name)
                places[name] = start, size
    return by_class, beside, places


def _members(file: IO[bytes], archive: str, start: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of each file in a tar that begins at byte `start` of a file."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if size is not None and member.offset_data + member.size > start + size:
                raise UserError(f"{archive} is cut off in {printable(member.name)}: {AGAIN}")
            if member.isfile():
                yield member.name, member.offset_data, member.size
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them are not needed again
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes damage for the end
            raise UserError(f"{archive} is cut off or damaged at byte {tar.offset:,}: {AGAIN}")
