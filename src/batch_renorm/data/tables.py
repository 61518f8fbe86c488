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
import pyarrow.parquet as pq

from batch_renorm.data.files import Files, Found, order, printable, reading
from batch_renorm.errors import UserError

STORE = "store.json"
"""In a store beside the files of `datasets`: the numbers of images, and whether they are sorted."""
FINISHED = "dataset_dict.json"
"""Written last."""
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid")}
"""The folder names that each split may have."""
COPY = "copy or download it again"
SERIES = re.compile(r"-(\d+)-of-(\d+)|^(\d+)(?=\.parquet$)")


def arrow_folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in SPLITS[split] if (root / name / "state.json").is_file()), None)


def is_arrow(root: Path) -> bool:
    return (root / STORE).exists() or (root / FINISHED).exists() or any(arrow_folder(root, split) for split in SPLITS)


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
        folder = arrow_folder(root, split)
        if folder is None:
            looked = ", ".join(f"{name}/state.json" for name in SPLITS[split])
            raise UserError(f"{root} has no {split} images: looked for {looked}")
        state = read_json(folder / "state.json")
        with reading(folder / "state.json", "the list of a split's files", COPY):
            shards = [folder / entry["filename"] for entry in state["_data_files"]]
            if not shards:
                raise ValueError("it names no files")
        files = found[split] = ArrowFiles(shards, in_order=store.get("sorted") is True)
        with reading(root / STORE, "the list of a store", COPY):
            if store and store["images"][folder.name] != len(files.labels):
                raise UserError(
                    f"{folder} has {len(files.labels):,} images, not {store['images'][folder.name]:,}: {COPY}"
                )
    names = class_names(next(iter(found.values())).schema, found)
    return Found("a store" if store else "an Arrow folder", names, found)


def find_parquet(root: Path, splits: tuple[str, ...]) -> Found:
    """Parquet files with columns image and label, as on the Hugging Face hub."""
    found: dict[str, Any] = {}
    for split in splits:
        shards = parquet_shards(root, split)
        if not shards:
            raise UserError(f"{root} has no {split} images: looked for {SPLITS[split][0]}-*.parquet, also in data/")
        check_series(shards)
        found[split] = ParquetFiles(shards)
    return Found("Parquet files", class_names(found[splits[0]].schema, found), found, in_order=False)


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
            for pattern in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet"):
                if shards := sorted(base.glob(pattern)):
                    return shards
    return []


def check_series(shards: list[Path]) -> None:
    """Check that all files of a series named ...-00003-of-00294... or 0003.parquet are there.

    Raises:
        UserError: a file is missing, or there are several series.
    """
    folder, numbers = shards[0].parent, [SERIES.search(shard.name) for shard in shards]
    matches = [match for match in numbers if match]
    totals = {int(match[2] or len(shards)) for match in matches}
    if len(totals) > 1 or (matches and len(matches) != len(shards)):
        raise UserError(
            f"{folder} has files of several series, such as {shards[0].name} and {shards[-1].name}: keep one"
        )
    for total in totals:
        there = {int(match[1] or match[3]) for match in matches}
        missing = sorted(set(range(total)) - there)
        if missing:
            digits = matches[0][1] or matches[0][3]
            name = shards[0].name.replace(digits, f"{missing[0]:0{len(digits)}d}", 1)
            raise UserError(f"{folder} lacks {name} ({len(missing):,} of {total:,} files): download it")
        if len(shards) > total:
            raise UserError(f"{folder} has more than {total:,} files of a series of so many: keep one of each")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    with reading(path, "JSON", COPY):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content


def class_names(schema: pa.Schema, splits: dict[str, Files]) -> list[str]:
    """The data set's names for its labels, which `datasets` writes into a file's schema; numbers if it has none.

    Raises:
        UserError: fewer names than labels, or something other than names.
    """
    most = max(splits.values(), key=lambda files: int(files.labels.max()))
    count = int(most.labels.max()) + 1
    where = most.name(int(most.labels.argmax()))
    with reading(where, "of a table with names of classes", COPY):
        description = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = description.get("info", {}).get("features", {}).get("label", {}).get("names")
        if names is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("names of classes are no text")
    if names is None and count > sum(len(files.labels) for files in splits.values()):
        raise UserError(f"{where} has the label {count - 1:,}, of fewer images: {COPY}")
    if names is not None and len(names) < count:
        raise UserError(f"{where} has the label {count - 1:,}, but its table names {len(names):,} classes: {COPY}")
    return list(map(str, range(count))) if names is None else list(names)


def checked_labels(column: pa.ChunkedArray, where: object) -> np.ndarray:
    """A column of labels, (images,) int64.

    Raises:
        UserError: the labels are not whole numbers from 0 on; the message names the file.
    """
    wanted = "labels must be whole numbers from 0 on, one an image"
    if not pa.types.is_integer(column.type):
        raise UserError(
            f"{where} has labels of type {column.type}: {wanted} (datasets' class_encode_column makes them)"
        )
    if column.null_count:
        raise UserError(f"{where} has {column.null_count:,} images without a label: {wanted}")
    labels = column.to_numpy().astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(f"{where} has the label {labels.min()}, as images without one have: {wanted}")
    return labels


def check_columns(schema: pa.Schema, where: object) -> None:
    """Check that a file has labels and the bytes of images.

    Raises:
        UserError: it has not; the message names the file and its columns.
    """
    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{where} has the columns {', '.join(schema.names)}: image and label are needed")
    image = schema.field("image").type
    data = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise UserError(f"{where} has images as {image}: save it again with the images' bytes in it (embedded)")


def field(image: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The bytes or paths of a column of images, as bytes; nulls where there are none."""
    if pa.types.is_struct(image.type):
        place = image.type.get_field_index(name)
        if place >= 0:
            return image.flatten()[place].cast(pa.binary() if name == "path" else image.type.field(place).type)
    return image if name == "bytes" else pa.chunked_array([pa.nulls(len(image), pa.binary())])


def path_of(image: pa.ChunkedArray) -> str | None:
    path = field(image, "path")[0].as_py()
    return None if path is None else printable(path)


class ArrowFiles:
    """The images of some Arrow files, sorted; `in_order` says that the files have this order already."""

    def __init__(self, shards: list[Path], in_order: bool) -> None:
        self.shards = [str(shard) for shard in shards]
        self.rows: np.ndarray | None = None
        for shard in shards:
            with reading(shard, "a whole Arrow file", COPY):
                table = _opened(str(shard))
                check_columns(table.schema, shard)
                for name in ("bytes", "path"):
                    field(table["image"], name).validate(full=True)  # reads the images' places, not the images
                if field(table["image"], "bytes").null_count:
                    raise UserError(f"{shard} has paths instead of images: save it again with embedded images")
                checked_labels(table["label"], shard)
        with reading(shards[0].parent, "a folder of Arrow files with the same columns", COPY):
            self.schema = self._table.schema
            self.labels = checked_labels(self._table["label"], shards[0].parent)
            if not len(self.labels):
                raise UserError(f"{shards[0].parent} has no images: {COPY}")
            if not in_order:
                self.rows = order(self.labels, field(self._table["image"], "path"))
                self.labels = self.labels[self.rows]

    @cached_property
    def _table(self) -> pa.Table:
        return pa.concat_tables([_opened(shard) for shard in self.shards])

    @cached_property
    def _bytes(self) -> pa.ChunkedArray:
        return field(self._table["image"], "bytes")

    def path(self, index: int) -> str | None:
        return path_of(self._table["image"].slice(self._row(index), 1))

    def name(self, index: int) -> str:
        path = self.path(index)
        return f"{Path(self.shards[0]).parent}, row {self._row(index)}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        return self._bytes[self._row(index)].as_py()  # here the disk is read

    def row(self, index: int) -> dict[str, Any]:
        """All columns of an image."""
        return self._table.slice(self._row(index), 1).to_pylist()[0]

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "_bytes")}


def _opened(shard: str) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(shard)).read_all()


class ParquetFiles:
    """Images in the order of the files. Reading the next image is quick; reading any other is slow."""

    def __init__(self, shards: list[Path]) -> None:
        self.shards = [str(shard) for shard in shards]
        self.groups: list[tuple[str, int]] = []
        rows, labels = [0], []
        for shard in self.shards:
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
        if not len(self.labels):
            raise UserError(f"{self.shards[0]} has no images: {COPY}")
        self._loaded: tuple[int, pa.Table | None] = (-1, None)

    def path(self, index: int) -> str | None:
        return path_of(self._row(index))

    def name(self, index: int) -> str:
        path, (shard, _) = self.path(index), self.groups[self._group(index)]
        return f"{shard}, row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        data = field(self._row(index), "bytes")[0].as_py()
        if data is None:
            raise OSError("there is a path instead of the image")
        return data

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _row(self, index: int) -> pa.ChunkedArray:
        number = self._group(index)
        if self._loaded[0] != number:
            shard, group = self.groups[number]
            with reading(shard, "a whole Parquet file", COPY):
                self._loaded = number, pq.ParquetFile(shard).read_row_group(group, ["image"])
        loaded = self._loaded[1]
        assert loaded is not None
        return loaded["image"].slice(index - int(self.starts[number]), 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": (-1, None)}
