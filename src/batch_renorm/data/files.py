"""Encoded images of a split, in any kind of storage, and their common order.

A data set orders its images by label, then by name, so that the same images have the same positions in folders,
archives and stores. Names are bytes, since a file's name need not be UTF-8, and are kept in Arrow arrays: changing
reference counts would copy a million Python objects, page by page, into every loader process.
"""

import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch_renorm.errors import TRANSIENT, TransientReadError, UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
STEM = r"^.*/|(_n\d{8})?\.[^./]*$"
"""Parts of a name that are not its stem: folders, extension, and the class that Hugging Face's copy appends."""
WAITS = (0.1, 1.0, 5.0)
"""Seconds before a read that failed for a moment is tried again."""


@contextmanager
def reading(path: Path | str, what: str, cure: str) -> Iterator[None]:
    """Turn any error while reading a file into a UserError, but for errors of a moment.

    Args:
        what: what the file should be.
        cure: what the user can do if it is not.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of binary formats may raise anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in TRANSIENT:
                raise
            raise UserError(f"cannot read {path}: {os.strerror(error.errno)}; {cure}") from error
        reason = looks_like(path) or f"is not {what} ({' '.join(str(error).split())[:200] or type(error).__name__})"
        raise UserError(f"{path} {reason}: {cure}") from error


def looks_like(path: Path | str) -> str | None:
    """A description of a wrong file that is often found in place of the right one; None if it is none of these."""
    try:
        with open(path, "rb") as file:
            begin = file.read(512).lstrip().lower()
    except OSError:
        return None
    if not begin:
        return "is empty"
    if begin.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, as servers send in place of a file"
    return "is a pointer of Git LFS, not the file itself (git lfs pull)" if begin.startswith(b"version http") else None


def is_image(name: str) -> bool:
    """Whether a name is that of an image; hidden files (._name on macOS) do not count."""
    return name.lower().endswith(EXTENSIONS) and not os.path.basename(name).startswith(".")


def printable(name: str | bytes) -> str:
    r"""A name for messages: of one that is not UTF-8, the other bytes as \xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Files:
    """The encoded images of one split, sorted by label, then by name; those without a name keep their order.

    Objects are pickled for loader processes. Subclasses say where an image is and read it.

    Args:
        labels: (images,) int64, in the order of `names`.
        names: the images' names, bytes or null.
    """

    any_order = True
    """Whether images can be read in any order without reading others."""

    def __init__(self, labels: np.ndarray, names: pa.Array | pa.ChunkedArray) -> None:
        stems = pc.replace_substring_regex(names, STEM, "")
        table = pa.table({"label": pa.array(labels), "stem": stems, "name": names})
        self.rows = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in table.column_names]).to_numpy()
        self.labels: np.ndarray = labels[self.rows]

    def of_labels(self, labels: np.ndarray) -> Self:
        """The images of some labels (ascending), with these labels numbered from 0 on."""
        part, chosen = copy.copy(self), np.isin(self.labels, labels)
        part.rows, part.labels = self.rows[chosen], np.searchsorted(labels, self.labels[chosen])
        return part

    def path(self, index: int) -> str | None:
        """The file name of an image, now or originally, printable."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Where an image is, for messages."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """An encoded image, read again while the disk fails for a moment.

        Raises:
            TransientReadError: it still fails.
            OSError: it cannot be read.
        """
        for wait in (0.0, *WAITS):
            time.sleep(wait)
            try:
                return self.read_once(index)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
                failure = error
        tried = f"tried {len(WAITS) + 1} times; the same command may work later"
        raise TransientReadError(f"cannot read {self.name(index)}: {failure.strerror} ({tried})") from failure

    def read_once(self, index: int) -> bytes:
        raise NotImplementedError


class PlainFiles(Files):
    """Images in separate files below `root`.

    Args:
        names: paths below the root, as `labels` unsorted.
    """

    def __init__(self, root: Path, labels: np.ndarray, names: list[str]) -> None:
        self.root, self.names = os.fsencode(root), pa.array(map(os.fsencode, names), pa.binary())
        super().__init__(labels, self.names)

    def path(self, index: int) -> str:
        return printable(self._name(index))

    def name(self, index: int) -> str:
        return f"{printable(self.root)}/{self.path(index)}"

    def read_once(self, index: int) -> bytes:
        with open(os.path.join(self.root, self._name(index)), "rb") as file:
            return file.read()

    def _name(self, index: int) -> bytes:
        return self.names[self.rows[index]].as_py()


@dataclass(frozen=True)
class Found:
    """A data set that was found.

    Args:
        kind: the kind of storage, for messages.
        classes: names in the order of labels.
        splits: "train" and "val", or the asked one alone.
        remarks: lines that the user should read, for example what was passed over.
    """

    kind: str
    classes: list[str]
    splits: dict[str, Files]
    remarks: tuple[str, ...] = ()
