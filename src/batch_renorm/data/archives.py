"""ILSVRC-2012's official archives: a tar of tars for training, a tar of files for validation.

Nothing is unpacked: tarfile reads the headers once, and images are read at their places in the archive.
"""

import os
import tarfile
from pathlib import Path

import numpy as np

from batch_renorm.data.files import PlainFiles, is_image, printable, reading
from batch_renorm.errors import UserError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
AGAIN = "download it again"

Place = tuple[int, int]
"""First byte in the archive, number of bytes."""


class TarFiles(PlainFiles):
    """Images in a tar file, read at their places in it."""

    def __init__(self, archive: Path, labels: np.ndarray, names: list[str], places: dict[str, Place]) -> None:
        super().__init__(archive, labels, names)
        self.places = np.array([places[name] for name in names], dtype=np.int64)

    def read_once(self, index: int) -> bytes:
        start, size = self.places[self.rows[index]].tolist()
        with open(self.root, "rb") as archive:
            archive.seek(start)
            return archive.read(size)


def images_in(archive: Path) -> tuple[list[str], dict[str, Place]]:
    """The classes that have a tar in an archive, and the places of its images: `n01440764/a.JPEG`, or `a.JPEG`.

    Raises:
        UserError: the archive cannot be read.
    """
    classes: list[str] = []
    places: dict[str, Place] = {}
    with reading(archive, "a whole tar file, uncompressed", AGAIN), tarfile.open(archive, "r:") as outer:
        for member in outer:
            if member.name.endswith(".tar"):
                if (name := Path(member.name).stem) in classes:
                    raise UserError(f"{archive} has the class {printable(name)} twice: {AGAIN}")
                classes.append(name)
                with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                    images = [image for image in inner if is_image(image.name)]
                    check_end(inner, f"{archive}:{member.name}")
                start = member.offset_data
                places |= {f"{name}/{image.name}": (start + image.offset_data, image.size) for image in images}
            elif is_image(member.name):
                places[os.path.basename(member.name)] = member.offset_data, member.size
        check_end(outer, archive)
    return classes, places


def check_end(tar: tarfile.TarFile, where: Path | str) -> None:
    """Raise a UserError unless a tar that was read ends as tars do: tarfile takes damage for the end."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise UserError(f"{where} is cut off or damaged at byte {tar.offset:,}: {AGAIN}")
