"""ILSVRC-2012's official archives: a tar of tars for training, a tar of files for validation.

Nothing is unpacked: tarfile reads the headers once, and images are read at their places in the archive.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from batch_renorm.data.files import PlainFiles, is_image, looks_like, printable, reading
from batch_renorm.errors import UserError

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
AGAIN = "download it again"

Member = tuple[str, int, int]
"""Name, first byte in the archive, number of bytes."""


class TarFiles(PlainFiles):
    """Images in a tar file, read at their places in it; `labels` is in the order of `members`."""

    SEPARATOR = ":"

    def __init__(self, archive: Path, labels: np.ndarray, members: list[Member]) -> None:
        super().__init__(archive, labels, [name for name, _, _ in members])
        self.places = np.array([place for _, *place in members], dtype=np.int64)[self.by_label]
        self._file: int | None = None

    def read(self, index: int) -> bytes:
        if self._file is None:
            self._file = os.open(self.root, os.O_RDONLY)
        start, size = self.places[index].tolist()
        data = os.pread(self._file, size, start)  # uses no file position, which processes would share
        if len(data) != size:
            raise OSError(f"the archive ends after {len(data)} of {size} bytes: {AGAIN}")
        return data

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None}


def by_class(archive: Path) -> dict[str, list[Member]]:
    """The images of each class in a tar that has a tar for each class.

    Raises:
        UserError: the archive cannot be read, or has something else in it.
    """
    result: dict[str, list[Member]] = {}
    with reading(archive, "a whole tar file", AGAIN), archive.open("rb") as file:
        for name, start, size in _members(file, archive, ""):
            if not name.endswith(".tar"):
                continue
            wnid = Path(name).stem
            if wnid in result:
                raise UserError(f"{archive} has the class {wnid} twice: {AGAIN}")
            result[wnid] = [member for member in _members(file, archive, name, start, size) if is_image(member[0])]
            if not result[wnid]:
                raise UserError(f"the class {wnid} has no images: {archive}:{name} is empty")
    if not result:
        raise UserError(f"{archive} should be a tar of n01440764.tar and so on, as image-net.org has it: {AGAIN}")
    return result


def images_in(archive: Path) -> list[Member]:
    """The images of a tar file.

    Raises:
        UserError: the archive cannot be read or has no images.
    """
    with reading(archive, "a whole tar file", AGAIN), archive.open("rb") as file:
        images = [member for member in _members(file, archive, "") if is_image(member[0])]
    if not images:
        raise UserError(f"{archive} has no images: {AGAIN}")
    return images


def _members(file: IO[bytes], archive: Path, inside: str, start: int = 0, size: int | None = None) -> Iterator[Member]:
    """The files of a tar file, or of the one named `inside` that begins at byte `start` of it."""
    name = f"{archive}:{inside}" if inside else str(archive)
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if size is not None and member.offset_data + member.size > start + size:
                    raise UserError(f"{name} is cut off in {printable(member.name)}: {AGAIN}")
                if member.isfile():
                    yield member.name, member.offset_data, member.size
                tar.members.clear()  # type: ignore[attr-defined]  # a million of them are not needed again
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes damage for the end
                raise UserError(f"{name} is cut off or damaged at byte {tar.offset:,}: {AGAIN}")
    except tarfile.TarError as error:
        if not inside and not looks_like(archive) and tarfile.is_tarfile(archive):
            raise UserError(f"{name} is compressed: unpack it first, images are read out of it at any place") from error
        raise UserError(f"{name} {looks_like(archive) or f'is not a whole tar file ({error})'}: {AGAIN}") from error
