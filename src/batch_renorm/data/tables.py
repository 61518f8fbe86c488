"""Tables of images as Hugging Face's `datasets` has them: memory-mapped Arrow files, as in a store, and Parquet files.

The columns are image (bytes and path) and label. An image in an Arrow file is read at its place, without the others.
Parquet files can only be read in order, to prepare a store.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_renorm.data.files import Files, Found, printable, reading
from batch_renorm.errors import UserError

STORE = "store.json"
"""In a store beside the files of `datasets`: of which images it is, written first."""
FINISHED = "dataset_dict.json"
"""Written last."""
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid")}
"""The folder names that each split may have."""
COPY = "copy or download it again"
SERIES = re.compile(r"(\d+)(?:-of-(\d+))?\.parquet$")


def find(root: Path, splits: Sequence[str]) -> Found | None:
    """A store, a folder that `DatasetDict.save_to_disk` wrote, or Parquet files as on the Hugging Face hub.

    Raises:
        UserError: not finished, damaged, or without images and labels.
    """
    if (root / STORE).exists() and not (root / FINISHED).exists():
        raise UserError(f"the store {root} is not finished: run scripts/prepare_imagenet.py again, it goes on")
    arrow = {split: arrow_files(root, split) for split in SPLITS}
    parquet = {split: parquet_files(root, split) for split in splits}
    in_arrow = any(arrow.values())
    if not in_arrow and not any(parquet.values()):
        return None
    found: dict[str, Any] = {}
    for split in splits:
        if not (files := (arrow if in_arrow else parquet)[split]):
            looked = ", ".join(f"{name}/state.json" for name in SPLITS[split])
            raise UserError(f"{root} has no {split} images: looked for {looked} and {split}-*.parquet, also in data/")
        found[split] = ArrowFiles(files) if in_arrow else ParquetFiles(files)
    return Found("Arrow files" if in_arrow else "Parquet files", class_names(found), found)


def arrow_files(root: Path, split: str) -> list[Path]:
    """The Arrow files of a split, as state.json in its folder lists them."""
    for name in SPLITS[split]:
        if (state := root / name / "state.json").is_file():
            with reading(state, "the list of a split's files", COPY):
                return [state.with_name(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]]
    return []


def parquet_files(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split: train-00000-of-00294.parquet, or train/0000.parquet as in the hub's conversions.

    Raises:
        UserError: a file is missing, or there are several series.
    """
    patterns = [pattern for name in SPLITS[split] for pattern in (f"{name}-*.parquet", f"{name}/*.parquet")]
    series = (sorted(base.glob(pattern)) for base in (root, root / "data", root / "default") for pattern in patterns)
    files = next(filter(None, series), [])
    numbers = [match.groups() for file in files if (match := SERIES.search(file.name))]
    if len({of for _, of in numbers}) > 1 or len(numbers) not in (0, len(files)):
        names = f"{files[0].name} and {files[-1].name}"
        raise UserError(f"{files[0].parent} has files of several series, such as {names}: keep one")
    there = {int(number) for number, _ in numbers}
    expected = range(int(numbers[0][1] or max(there) + 1) if numbers else 0)
    if missing := sorted(set(expected) - there):
        raise UserError(
            f"{files[0].parent} lacks number {missing[0]} of the files such as {files[0].name} ({len(missing):,} of "
            f"{len(expected):,} files): download it"
        )
    return files


def class_names(splits: dict[str, Any]) -> list[str]:
    """The data set's names for its labels, which `datasets` writes into a file's schema; numbers if it has none.

    Raises:
        UserError: there are fewer names than labels.
    """
    most = max(splits.values(), key=lambda files: int(files.labels.max()))
    where = most.name(int(most.labels.argmax()))
    with reading(where, "of a table with names of classes", COPY):
        description = json.loads((most.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = description.get("info", {}).get("features", {}).get("label", {}).get("names")
    if names is None:
        names = [str(label) for label in range(min(int(most.labels.max()) + 1, 10**6))]  # more are damage
    if len(names) <= most.labels.max():
        raise UserError(
            f"{where} has the label {most.labels.max():,}, but the table has {len(names):,} classes: {COPY}"
        )
    return names


def check_columns(schema: pa.Schema, where: object) -> None:
    """Raise a UserError, with the file and its columns, unless it has whole numbers as labels and images in it."""
    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{where} has the columns {', '.join(schema.names)}: image and label are needed")
    image, label = schema.field("image").type, schema.field("label").type
    data = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise UserError(f"{where} has images as {image}: save it again with the images' bytes in it (embedded)")
    if not pa.types.is_integer(label):
        raise UserError(f"{where} has labels of type {label}: whole numbers are needed (class_encode_column)")


def checked_labels(column: pa.ChunkedArray, where: object) -> np.ndarray:
    """A column of labels, (images,) int64; raises a UserError, with the file, if an image has none."""
    labels = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    if not len(labels):
        raise UserError(f"{where} has no images: {COPY}")
    if labels.min() < 0:
        raise UserError(f"{where} has images without a label (null or {labels.min()}): every image needs one")
    return labels


class TableFiles(Files):
    """Images in the rows of a table."""

    schema: pa.Schema

    def cell(self, index: int) -> pa.Scalar:
        """The image's cell in the table: its bytes, or its bytes and its path."""
        raise NotImplementedError

    def image(self, index: int) -> dict[str, Any]:
        cell = self.cell(index).as_py()  # here the disk is read
        return cell if isinstance(cell, dict) else {"bytes": cell}

    def place(self, index: int) -> str:
        """The image's file or folder, and its row there."""
        raise NotImplementedError

    def path(self, index: int) -> str | None:
        path = self.image(index).get("path")
        return None if path is None else printable(path)

    def name(self, index: int) -> str:
        path = self.path(index)
        return self.place(index) + (f" ({path})" if path else "")

    def read_once(self, index: int) -> bytes:
        data = self.image(index)["bytes"]
        if data is None:
            raise OSError("there is a path instead of the image: save the data set again with embedded images")
        return data


class ArrowFiles(TableFiles):
    """The images of some Arrow files in a folder."""

    def __init__(self, shards: list[Path]) -> None:
        self.folder, self.shards = shards[0].parent, shards
        for shard in shards:
            with reading(shard, "a whole Arrow file", COPY):
                table = _opened(shard)
                check_columns(table.schema, shard)
                table.validate(full=True)  # reads the images' places, not the images
        with reading(self.folder, "a folder of Arrow files with the same columns", COPY):
            self.schema = self._table.schema
            images, kind = self._table["image"], self.schema.field("image").type
            named = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
            paths = pc.struct_field(images, "path").cast(pa.binary()) if named else pa.nulls(len(images), pa.binary())
            super().__init__(checked_labels(self._table["label"], self.folder), paths)

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables([_opened(shard) for shard in self.shards])

    def cell(self, index: int) -> pa.Scalar:
        return self._table["image"][self.rows[index]]

    def place(self, index: int) -> str:
        return f"{self.folder}, row {self.rows[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}


def _opened(shard: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(shard))).read_all()


class ParquetFiles(TableFiles):
    """Images in the order of the files. Reading the next image is quick; reading any other is slow."""

    any_order = False

    def __init__(self, shards: list[Path]) -> None:
        self.groups: list[tuple[Path, int]] = []
        rows, labels = [], []
        for shard in shards:
            with reading(shard, "a whole Parquet file", COPY):
                file = pq.ParquetFile(shard)
                self.schema = file.schema_arrow
                check_columns(self.schema, shard)
                self.groups += [(shard, group) for group in range(file.num_row_groups)]
                rows += [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                labels.append(checked_labels(file.read(["label"])["label"], shard))
        self.labels, self.ends = np.concatenate(labels), np.cumsum(rows)
        self.group_of = np.repeat(np.arange(len(rows)), rows)
        self._reading = Lock()  # so that of several threads one reads a group

    def cell(self, index: int) -> pa.Scalar:
        group = self.group_of[index]
        with self._reading:
            images = _images_of(*self.groups[group])
        return images[index - int(self.ends[group])]  # from the group's end

    def place(self, index: int) -> str:
        return f"{self.groups[self.group_of[index]][0]}, row {index}"


@lru_cache(maxsize=2)  # of a group that threads still read and of the next one
def _images_of(shard: Path, group: int) -> pa.ChunkedArray:
    with reading(shard, "a whole Parquet file", COPY):
        return pq.ParquetFile(shard).read_row_group(group, ["image"])["image"]
