"""Reads stores and folders written by Hugging Face's `datasets`: a few big, memory-mapped files of Arrow batches.

A split is a folder with state.json, which names the files, and dataset_info.json; the columns are image
(bytes and path) and label. An image is read at its place in the mapped file, without unpacking the batch.
Parquet files can only be read in order, to prepare a store.
"""

import json
import re
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_renorm.data.files import Files, Found, order, reading
from batch_renorm.errors import UserError

STORE = "store.json"
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid")}
"""Our splits, and the folder names that each may have."""
COPY = "copy or download it again"
SERIES = re.compile(r"-(\d+)-of-(\d+)")


def is_arrow(root: Path) -> bool:
    return (root / STORE).exists() or (root / "dataset_dict.json").exists() or (root / "train" / "state.json").exists()


def find(root: Path) -> Found:
    """A store, or a folder that `DatasetDict.save_to_disk` wrote.

    Raises:
        UserError: not finished, damaged, or without images and labels.
    """
    manifest = read_json(root / STORE) if (root / STORE).exists() else None
    with reading(root / STORE, "the list of a store", COPY):
        if manifest is not None and not manifest["finished"]:
            raise UserError(f"the store {root} is not finished: run scripts/prepare_imagenet.py again, it goes on")
    splits: dict[str, Files] = {}
    info: dict[str, Any] = {}
    for split, names in SPLITS.items():
        folder = next((root / name for name in names if (root / name / "state.json").exists()), None)
        if folder is None:
            raise UserError(f"{root} has no {split} images: looked for {', '.join(f'{n}/state.json' for n in names)}")
        state = read_json(folder / "state.json")
        with reading(folder / "state.json", "the list of a split's files", COPY):
            shards = [folder / entry["filename"] for entry in state["_data_files"]]
            if not shards:
                raise UserError("it names no files")
        files = ArrowFiles(shards, in_order=bool(manifest and manifest.get("in_order")))
        splits[split] = files
        if manifest is not None:
            with reading(root / STORE, "the list of a store", COPY):
                entry = manifest["splits"][folder.name]
                check_sizes(entry["shards"], folder)
                checksum = zlib.crc32(files._labels_as_written.tobytes())
                if checksum != entry.get("labels_crc32", checksum):
                    raise UserError(f"the labels in {folder} are not those that were written: {COPY}")
        info = info or read_json(folder / "dataset_info.json")
    names_of = (root / "train" / "dataset_info.json", info.get("features"))
    return Found("store" if manifest else "Arrow folder", class_names(*names_of, splits), splits)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    with reading(path, "JSON", COPY):
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise UserError(f"it holds a {type(found).__name__}")
        return found


def check_sizes(shards: list[dict[str, Any]], folder: Path) -> None:
    """Check the files' sizes: reading a truncated mapped file would kill the run with a signal."""
    for shard in shards:
        path = folder / shard["file"]
        if not path.exists():
            raise UserError(f"the store lacks {path}: copy it again, or run scripts/prepare_imagenet.py again")
        size = path.stat().st_size
        if size != shard["bytes"]:
            raise UserError(f"{path} has {size:,} bytes, not {shard['bytes']:,}: copy it again")


def class_names(path: Path, features: Any, splits: dict[str, Files]) -> list[str]:
    """The data set's names for its labels; numbers if it has none.

    Raises:
        UserError: fewer names than labels, or something other than names; `path` is the file with the names.
    """
    most = max(splits.values(), key=lambda files: int(files.labels.max()))
    count = int(most.labels.max()) + 1
    with reading(path, "a description of columns with names of classes", COPY):
        names = ((features or {}).get("label") or {}).get("names")
        if names is None and count > sum(len(files.labels) for files in splits.values()):
            raise UserError(
                f"{most.name(int(most.labels.argmax()))} has the label {count - 1:,}, of fewer images: {COPY}"
            )
        if names is None:
            return [str(label) for label in range(count)]
        if not all(isinstance(name, str) for name in names):
            raise UserError("names of classes are no text")
        if len(names) < count:
            where = most.name(int(most.labels.argmax()))
            raise UserError(f"{path} names {len(names):,} classes, but {where} has the label {count - 1:,}: {COPY}")
        return list(names)


def checked_labels(column: pa.Array | pa.ChunkedArray, where: str) -> np.ndarray:
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


def check_columns(schema: pa.Schema, where: str) -> None:
    """Check that a file has labels and the bytes of images.

    Raises:
        UserError: it has not; the message names the file and its columns.
    """
    names = schema.names
    if not {"image", "label"} <= set(names):
        raise UserError(f"{where} has the columns {', '.join(names)}: image and label are needed")
    image = schema.field("image").type
    data = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data)):
        raise UserError(f"{where} has images as {image}: save it again with the images' bytes in it (embedded)")


class ArrowFiles:
    """The images of some Arrow files in the data set's order; a store already has this order."""

    def __init__(self, shards: list[Path], in_order: bool) -> None:
        self.shards = [str(shard) for shard in shards]
        self.in_order = in_order

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [batch for shard in self.shards for batch in _batches_of(shard) if batch.num_rows]

    @cached_property
    def _images(self) -> list[tuple[np.ndarray, memoryview]]:
        """For every batch: the offsets of the images, and the bytes, which stay in the mapped file."""
        return [_places(batch, self.shards) for batch in self._batches]

    @cached_property
    def _starts(self) -> np.ndarray:
        """The position of the first image of every batch, in the order of the files."""
        return np.cumsum([0] + [batch.num_rows for batch in self._batches])

    @cached_property
    def _order(self) -> np.ndarray | None:
        if self.in_order:
            return None
        return order(self._labels_as_written, self._paths)

    @cached_property
    def _paths(self) -> pa.ChunkedArray:
        with reading(Path(self.shards[0]).parent, "a folder of Arrow files with names that can be read", COPY):
            return pa.chunked_array([_field(batch, "path").cast(pa.string()) for batch in self._batches], pa.string())

    @cached_property
    def _labels_as_written(self) -> np.ndarray:
        where = str(Path(self.shards[0]).parent)
        if not self._batches:
            raise UserError(f"{where} has no images: {COPY}")
        return np.concatenate([checked_labels(batch.column("label"), where) for batch in self._batches])

    @cached_property
    def labels(self) -> np.ndarray:
        labels = self._labels_as_written
        return labels if self._order is None else labels[self._order]

    @property
    def names(self) -> pa.ChunkedArray:
        return self._paths if self._order is None else self._paths.take(pa.array(self._order))

    def path(self, index: int) -> str | None:
        return self._paths[self._row(index)].as_py()

    def name(self, index: int) -> str:
        path = self.path(index)
        return f"{Path(self.shards[0]).parent}, row {self._row(index)}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        row = self._row(index)
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets, data = self._images[batch]
        place = row - int(self._starts[batch])
        return bytes(data[offsets[place] : offsets[place + 1]])  # a copy: here the disk is read

    def as_written(self) -> "ArrowFiles":
        """The same images in the order of the files."""
        return ArrowFiles([Path(shard) for shard in self.shards], in_order=True)

    def _row(self, index: int) -> int:
        return index if self._order is None else int(self._order[index])

    def __getstate__(self) -> dict[str, Any]:
        kept = ("shards", "in_order", "labels", "_order")
        return {name: value for name, value in self.__dict__.items() if name in kept}


def _batches_of(shard: str) -> list[pa.RecordBatch]:
    with reading(shard, "a whole Arrow file", COPY):
        batches = list(pa.ipc.open_stream(pa.memory_map(shard)))
        for batch in batches:
            check_columns(batch.schema, shard)
            batch.validate()
    return batches


def _field(batch: pa.RecordBatch, name: str) -> pa.Array:
    image = batch.column("image")
    if pa.types.is_struct(image.type) and image.type.get_field_index(name) >= 0:
        return image.field(name)
    return image if name == "bytes" else pa.nulls(len(image), pa.string())


def _places(batch: pa.RecordBatch, shards: list[str]) -> tuple[np.ndarray, memoryview]:
    column = _field(batch, "bytes")
    if column.null_count:
        raise UserError(f"{Path(shards[0]).parent} has paths instead of images: save it again with embedded images")
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    _, places, data = column.buffers()
    offsets = np.frombuffer(places, width)[column.offset : column.offset + len(column) + 1]
    if (np.diff(offsets) < 0).any():
        raise UserError(f"{Path(shards[0]).parent} is damaged, its images overlap: {COPY}")
    return offsets, memoryview(data)


def parquet_shards(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in the root, its folder data or the split's folder."""
    return next(
        (
            found
            for name in SPLITS[split]
            for folder in (root, root / "data", root / name)
            if (found := sorted(folder.glob(f"{name}*.parquet")))
        ),
        [],
    )


def check_series(shards: Sequence[Path]) -> None:
    """Check that all files of a series named ...-00003-of-00294... are there.

    Raises:
        UserError: a file is missing, or there are several series.
    """
    numbers = [match for shard in shards if (match := SERIES.search(shard.name))]
    totals = {int(match[2]) for match in numbers}
    if len(totals) > 1 or (numbers and len(numbers) != len(shards)):
        raise UserError(f"{shards[0].parent} has files of several series, such as {shards[0].name} and "
                            f"{shards[-1].name}: keep one")  # fmt: skip
    for total in totals:
        missing = sorted(set(range(total)) - {int(match[1]) for match in numbers})
        if missing:
            known = numbers[0]
            number = f"-{missing[0]:0{len(known[1])}d}-of-{known[2]}"
            name = shards[0].name.replace(known[0], number)
            raise UserError(f"{shards[0].parent} lacks {name} ({len(missing):,} of {total:,} files): download it")
        if len(numbers) > total:
            raise UserError(
                f"{shards[0].parent} has more than {total:,} files of a series of so many: keep one of each"
            )


def find_parquet(root: Path) -> Found:
    """Parquet files with columns image and label, as on the Hugging Face hub."""
    splits: dict[str, Files] = {}
    for split, names in SPLITS.items():
        shards = parquet_shards(root, split)
        if not shards:
            raise UserError(f"{root} has no {split} images: looked for {names[0]}-*.parquet, also in data/")
        check_series(shards)
        splits[split] = ParquetFiles(shards)
    first = parquet_shards(root, "train")[0]
    with reading(first, "a Parquet file whose description can be read", COPY):
        metadata = pq.read_schema(first).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return Found("Parquet files", class_names(first, features, splits), splits, random_access=False)


class ParquetFiles:
    """Images in the order of the files. Reading the next image is quick; reading any other is slow."""

    def __init__(self, shards: list[Path]) -> None:
        self.shards = [str(shard) for shard in shards]
        self.groups: list[tuple[int, int]] = []
        rows, labels = [], []
        for number, shard in enumerate(self.shards):
            with reading(shard, "a whole Parquet file", COPY):
                file = pq.ParquetFile(shard)
                check_columns(file.schema_arrow, shard)
                groups = range(file.metadata.num_row_groups)
                self.groups += [(number, group) for group in groups]
                rows += [file.metadata.row_group(group).num_rows for group in groups]
                labels.append(checked_labels(file.read(["label"])["label"], shard))
                if len(labels[-1]) != file.metadata.num_rows:
                    raise UserError(f"{len(labels[-1]):,} labels for {file.metadata.num_rows:,} rows")
        self.starts = np.cumsum([0, *rows])
        self.labels = np.concatenate(labels)
        if not len(self.labels):
            raise UserError(f"{self.shards[0]} has no images: {COPY}")
        self._loaded: tuple[int, pa.Array | None] = (-1, None)

    @property
    def names(self) -> pa.ChunkedArray:
        parts: list[pa.Array] = []
        for shard in self.shards:
            with reading(shard, "a whole Parquet file", COPY):
                file = pq.ParquetFile(shard)
                if pa.types.is_struct(file.schema_arrow.field("image").type):
                    column = file.read(["image.path"])["image"]
                    parts += [chunk.field("path").cast(pa.string()) for chunk in column.chunks]
                else:
                    parts.append(pa.nulls(file.metadata.num_rows, pa.string()))
        return pa.chunked_array(parts, pa.string())

    def path(self, index: int) -> str | None:
        image = self._image(index)
        return image["path"].as_py() if isinstance(image, pa.StructScalar) and "path" in image else None

    def name(self, index: int) -> str:
        path, (shard, _) = self.path(index), self.groups[self._group(index)]
        return f"{self.shards[shard]}, row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        image = self._image(index)
        data = (image["bytes"] if isinstance(image, pa.StructScalar) else image).as_py()
        if data is None:
            raise OSError("there is a path instead of the image")
        return data

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _image(self, index: int) -> pa.Scalar:
        number = self._group(index)
        if self._loaded[0] != number:
            shard, group = self.groups[number]
            with reading(self.shards[shard], "a whole Parquet file", COPY):
                table = pq.ParquetFile(self.shards[shard]).read_row_group(group, ["image"])
                self._loaded = number, table["image"].combine_chunks()
        loaded = self._loaded[1]
        assert loaded is not None
        return loaded[index - int(self.starts[number])]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": (-1, None)}
