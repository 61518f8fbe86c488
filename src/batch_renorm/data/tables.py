"""Tables of images as Hugging Face's `datasets` has them: memory-mapped Arrow files, as in a store, and Parquet files.

The columns are image (bytes and path) and label. An image in an Arrow file is read at its place, without the others.
Parquet files can only be read in order, to prepare a store.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch_renorm.data.files import Found, order, printable, reading
from batch_renorm.errors import UserError

STORE = "store.json"
"""In a store beside the files of `datasets`: the numbers of images, and whether they are sorted."""
FINISHED = "dataset_dict.json"
"""Written last."""
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid")}
"""The folder names that each split may have."""
COPY = "copy or download it again"
SERIES = re.compile(r"(\d+)(?:-of-(\d+))?\.parquet$")


def is_arrow(root: Path) -> bool:
    return (root / STORE).exists() or (root / FINISHED).exists() or any(_folder(root, split) for split in SPLITS)


def _folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in SPLITS[split] if (root / name / "state.json").is_file()), None)


def find_arrow(root: Path, splits: tuple[str, ...]) -> Found:
    """A store, or a folder that `DatasetDict.save_to_disk` wrote.

    Raises:
        UserError: not finished, damaged, or without images and labels.
    """
    store = read_json(root / STORE) if (root / STORE).exists() else {}
    if store and not (root / FINISHED).exists():
        raise UserError(f"the store {root} is not finished: run scripts/prepare_imagenet.py again, it goes on")
    found: dict[str, Any] = {}
    for split in splits:
        folder = _folder(root, split)
        if folder is None:
            looked = ", ".join(f"{name}/state.json" for name in SPLITS[split])
            raise UserError(f"{root} has no {split} images: looked for {looked}")
        state = read_json(folder / "state.json")
        with reading(folder / "state.json", "the list of a split's files", COPY):
            shards = [str(folder / entry["filename"]) for entry in state["_data_files"]]
        found[split] = ArrowFiles(str(folder), shards, in_order=store.get("sorted") is True)
        with reading(root / STORE, "the list of a store", COPY):
            have = len(found[split].labels)
            want = store["images"][folder.name] if store else have
        if have != want:
            raise UserError(f"{folder} has {have:,} images, not {want:,}: {COPY}")
    return Found("a store" if store else "an Arrow folder", class_names(found), found)


def find_parquet(root: Path, splits: tuple[str, ...]) -> Found:
    """Parquet files with columns image and label, as on the Hugging Face hub."""
    found: dict[str, Any] = {}
    for split in splits:
        shards = parquet_shards(root, split)
        if not shards:
            raise UserError(f"{root} has no {split} images: looked for {SPLITS[split][0]}-*.parquet, also in data/")
        check_series(shards)
        found[split] = ParquetFiles(shards)
    return Found("Parquet files", class_names(found), found, in_order=False)


def parquet_shards(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split: train-00000-of-00294.parquet, or train/0000.parquet as in the hub's conversions.

    Raises:
        UserError: the hub has converted a part of the split alone.
    """
    for name in SPLITS[split]:
        for base in (root, root / "data", root / "default"):
            if (base / f"partial-{name}").is_dir():
                raise UserError(
                    f"{base / f'partial-{name}'} is a part of the data set, which the hub's conversion ended with: "
                    "download the files that were uploaded (data/*.parquet), not those of refs/convert/parquet"
                )
            for pattern in (f"{name}-*.parquet", f"{name}/*.parquet"):
                if shards := sorted(base.glob(pattern)):
                    return shards
    return []


def check_series(shards: list[Path]) -> None:
    """Check that all files of a series named ...-00003-of-00294.parquet or 0003.parquet are there.

    Raises:
        UserError: a file is missing, or there are several series.
    """
    folder, matches = shards[0].parent, [match for shard in shards if (match := SERIES.search(shard.name))]
    if len({match[2] for match in matches}) > 1 or len(matches) not in (0, len(shards)):
        raise UserError(
            f"{folder} has files of several series, such as {shards[0].name} and {shards[-1].name}: keep one"
        )
    there = {int(match[1]) for match in matches}
    expected = range(int(matches[0][2] or max(there) + 1) if matches else 0)
    if missing := sorted(set(expected) - there):
        first = matches[0]
        name = f"{first.string[: first.start(1)]}{missing[0]:0{len(first[1])}d}{first.string[first.end(1) :]}"
        raise UserError(f"{folder} lacks {name} ({len(missing):,} of {len(expected):,} files): download it")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    with reading(path, "JSON", COPY):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content


def class_names(splits: dict[str, Any]) -> list[str]:
    """The data set's names for its labels, which `datasets` writes into a file's schema; numbers if it has none.

    Raises:
        UserError: fewer names than labels, or something other than names.
    """
    most = max(splits.values(), key=lambda files: int(files.labels.max()))
    count = int(most.labels.max()) + 1
    where = most.name(int(most.labels.argmax()))
    with reading(where, "of a table with names of classes", COPY):
        description = json.loads((most.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = description.get("info", {}).get("features", {}).get("label", {}).get("names")
        if names is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("names of classes are no text")
    known = sum(len(files.labels) for files in splits.values()) if names is None else len(names)
    if known < count:
        what = "there are so many images" if names is None else "classes are named in its table"
        raise UserError(f"{where} has the label {count - 1:,}, but {known:,} {what}: {COPY}")
    return list(map(str, range(count))) if names is None else names


def check_columns(schema: pa.Schema, where: str) -> None:
    """Check that a file has whole numbers as labels and the bytes of images.

    Raises:
        UserError: it has not; the message names the file and its columns.
    """
    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{where} has the columns {', '.join(schema.names)}: image and label are needed")
    image, label = schema.field("image").type, schema.field("label").type
    data = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise UserError(f"{where} has images as {image}: save it again with the images' bytes in it (embedded)")
    if not pa.types.is_integer(label):
        raise UserError(f"{where} has labels of type {label}: whole numbers are needed (class_encode_column)")


def checked_labels(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """A column of labels, (images,) int64.

    Raises:
        UserError: an image has no label; the message names the file.
    """
    labels = pc.fill_null(column, -1).to_numpy().astype(np.int64)
    if not len(labels):
        raise UserError(f"{where} has no images: {COPY}")
    if labels.min() < 0:
        raise UserError(f"{where} has images without a label (null or {labels.min()}): every image needs one")
    return labels


class _Table:
    """Images in the rows of a table."""

    labels: np.ndarray
    schema: pa.Schema

    def _image(self, index: int) -> dict[str, Any] | bytes:
        raise NotImplementedError

    def _place(self, index: int) -> str:
        raise NotImplementedError

    def path(self, index: int) -> str | None:
        image = self._image(index)
        path = image.get("path") if isinstance(image, dict) else None
        return None if path is None else printable(path)

    def name(self, index: int) -> str:
        path = self.path(index)
        return self._place(index) + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        image = self._image(index)
        data = image["bytes"] if isinstance(image, dict) else image
        if data is None:
            raise OSError("there is a path instead of the image: save the data set again with embedded images")
        return data


class ArrowFiles(_Table):
    """The images of some Arrow files in a folder, sorted; `in_order` says that the files have this order already."""

    def __init__(self, folder: str, shards: list[str], in_order: bool) -> None:
        self.folder, self.shards = folder, shards
        for shard in shards:
            with reading(shard, "a whole Arrow file", COPY):
                table = _opened(shard)
                check_columns(table.schema, shard)
                table.validate(full=True)  # reads the images' places, not the images
        with reading(folder, "a folder of Arrow files with the same columns", COPY):
            self.schema, labels = self._table.schema, checked_labels(self._table["label"], folder)
            self.rows = np.arange(len(labels)) if in_order else order(labels, self._paths())
            self.labels = labels[self.rows]

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables([_opened(shard) for shard in self.shards])

    def _paths(self) -> pa.ChunkedArray | pa.Array:
        image = self._table["image"]
        if pa.types.is_struct(image.type) and image.type.get_field_index("path") >= 0:
            return pc.struct_field(image, "path").cast(pa.binary())
        return pa.nulls(len(image), pa.binary())

    def row(self, index: int) -> dict[str, Any]:
        """All columns of an image."""
        return self._table.slice(self.rows[index], 1).to_pylist()[0]

    def _image(self, index: int) -> dict[str, Any] | bytes:
        return self._table["image"][self.rows[index]].as_py()  # here the disk is read

    def _place(self, index: int) -> str:
        return f"{self.folder}, row {self.rows[index]}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}


def _opened(shard: str) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(shard)).read_all()


class ParquetFiles(_Table):
    """Images in the order of the files. Reading the next image is quick; reading any other is slow."""

    def __init__(self, shards: list[Path]) -> None:
        self.groups: list[tuple[str, int]] = []
        rows, labels = [0], []
        for shard in map(str, shards):
            with reading(shard, "a whole Parquet file", COPY):
                file = pq.ParquetFile(shard)
                self.schema = file.schema_arrow
                check_columns(self.schema, shard)
                for group in range(file.metadata.num_row_groups):
                    self.groups.append((shard, group))
                    rows.append(file.metadata.row_group(group).num_rows)
                labels.append(checked_labels(file.read(["label"])["label"], shard))
                if len(labels[-1]) != file.metadata.num_rows:
                    raise ValueError(f"{len(labels[-1]):,} labels for {file.metadata.num_rows:,} rows")
        self.starts, self.labels = np.cumsum(rows), np.concatenate(labels)
        self._loaded: tuple[int, Any] = (-1, None)

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _image(self, index: int) -> dict[str, Any] | bytes:
        number = self._group(index)
        if self._loaded[0] != number:
            shard, group = self.groups[number]
            with reading(shard, "a whole Parquet file", COPY):
                self._loaded = number, pq.ParquetFile(shard).read_row_group(group, ["image"])["image"]
        return self._loaded[1][index - int(self.starts[number])].as_py()

    def _place(self, index: int) -> str:
        return f"{self.groups[self._group(index)][0]}, row {index}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": (-1, None)}
