"""Encoded images of a split, whatever they are stored in, and the order that all of them share.

A data set has one order of its images, by label and then by name, so that the same images have the same
positions whether they come from folders, archives or a store. Names are kept in Arrow arrays: a million
Python strings would be copied into every loader process, page by page, as their reference counts change.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

STEM = r"^.*/|(_n\d{8})?\.[^./]*$"
"""What is not an image's stem: folders, extension, and the class that Hugging Face's copy appends to names."""


class Files(Protocol):
    """The encoded images of one split. Objects are pickled to loader processes: they hold no open file then."""

    @property
    def labels(self) -> np.ndarray:
        """(images,) int64."""
        ...

    def path(self, index: int) -> str | None:
        """The name that an image has, or had, as a file."""
        ...

    def name(self, index: int) -> str:
        """Where an image is, for people."""
        ...

    def read(self, index: int) -> bytes:
        """An image as it is encoded."""
        ...


@dataclass(frozen=True)
class Found:
    """A data set that was found.

    Args:
        kind: what it is stored in, for people.
        classes: names in the order of labels.
        splits: "train" and "val".
        random_access: whether images can be read in any order without reading others.
    """

    kind: str
    classes: list[str]
    splits: dict[str, Files]
    random_access: bool = True


def order(labels: np.ndarray, names: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The permutation that sorts images by label, then by name; images without names keep their order."""
    stems = pc.replace_substring_regex(names, STEM, "")
    table = pa.table({"label": pa.array(labels), "stem": stems, "name": names})
    keys = [("label", "ascending"), ("stem", "ascending"), ("name", "ascending")]
    return pc.sort_indices(table, sort_keys=keys).to_numpy()


class PlainFiles:
    """A file each, below `root`.

    Args:
        root: folder that names are relative to.
        labels: (images,) int64, in the same order as
        names: paths below the root.
    """

    def __init__(self, root: Path, labels: np.ndarray, names: list[str]) -> None:
        strings = pa.array(names, pa.string())
        by_label = order(labels, strings)
        self.root, self.labels, self.names = str(root), labels[by_label], strings.take(pa.array(by_label))

    def path(self, index: int) -> str:
        return self.names[index].as_py()

    def name(self, index: int) -> str:
        return f"{self.root}/{self.path(index)}"

    def read(self, index: int) -> bytes:
        with open(self.name(index), "rb") as file:
            return file.read()
