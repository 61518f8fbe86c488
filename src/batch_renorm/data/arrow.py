"""Reads the store, and what Hugging Face's `datasets` writes: few big files of Arrow record batches, memory-mapped.

A split is a folder with state.json, which names the files, and dataset_info.json; the columns are image
(bytes and path) and label. An image is read by its place in the mapped file: no batch is ever taken apart.
Parquet files are read, too, but only one after another, to prepare a store from.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_renorm.data.files import Files, Found, order

STORE = "store.json"
SPLITS = {"train": ("train",), "val": ("validation", "val", "valid")}
"""A split of ours, and the names that it may have in a folder."""


def is_arrow(root: Path) -> bool:
    return (root / STORE).exists() or (root / "dataset_dict.json").exists() or (root / "train" / "state.json").exists()


def find(root: Path) -> Found:
    """A store, or a folder that `DatasetDict.save_to_disk` wrote.

    Raises:
        ValueError: not finished, damaged, or without images and labels.
    """
    manifest = json.loads((root / STORE).read_text()) if (root / STORE).exists() else None
    if manifest is not None and not manifest["finished"]:
        raise ValueError(f"the store {root} is not finished: run scripts/prepare_imagenet.py again, it goes on")
    splits: dict[str, Files] = {}
    info: dict[str, Any] = {}
    for split, names in SPLITS.items():
        folder = next((root / name for name in names if (root / name / "state.json").exists()), None)
        if folder is None:
            raise ValueError(f"{root} has no {split} images: looked for {', '.join(f'{n}/state.json' for n in names)}")
        state = json.loads((folder / "state.json").read_text())
        shards = [folder / entry["filename"] for entry in state["_data_files"]]
        if manifest is not None:
            check_sizes(manifest["splits"][folder.name]["shards"], folder)
        splits[split] = ArrowFiles(shards, in_order=bool(manifest and manifest["in_order"]))
        info = info or json.loads((folder / "dataset_info.json").read_text())
    return Found("store" if manifest else "Arrow folder", class_names(info.get("features") or {}, splits), splits)


def check_sizes(shards: list[dict[str, Any]], folder: Path) -> None:
    """A shorter file than was written would end a run, in the middle, by a signal."""
    for shard in shards:
        path = folder / shard["file"]
        if not path.exists():
            raise ValueError(f"the store lacks {path}: copy it again, or run scripts/prepare_imagenet.py again")
        size = path.stat().st_size
        if size != shard["bytes"]:
            raise ValueError(f"{path} has {size:,} bytes, not {shard['bytes']:,}: copy it again")


def class_names(features: dict[str, Any], splits: dict[str, Files]) -> list[str]:
    """The names that the data set gives to its labels; numbers where it gives none."""
    names = features.get("label", {}).get("names")
    count = max(int(files.labels.max()) for files in splits.values()) + 1
    return list(names) if names else [str(label) for label in range(count)]


class ArrowFiles:
    """The images of some Arrow files in the data set's order, which a store is already in."""

    def __init__(self, shards: list[Path], in_order: bool) -> None:
        self.shards = [str(shard) for shard in shards]
        self.in_order = in_order

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        return [batch for shard in self.shards for batch in _batches_of(shard) if batch.num_rows]

    @cached_property
    def _images(self) -> list[tuple[np.ndarray, memoryview]]:
        """Of every batch: where images begin in the bytes, and the bytes, which stay in the mapped file."""
        return [_places(batch, self.shards) for batch in self._batches]

    @cached_property
    def _starts(self) -> np.ndarray:
        """The position of every batch's first image, in the order of the files."""
        return np.cumsum([0] + [batch.num_rows for batch in self._batches])

    @cached_property
    def _order(self) -> np.ndarray | None:
        if self.in_order:
            return None
        return order(np.concatenate([batch.column("label").to_numpy() for batch in self._batches]), self._paths)

    @cached_property
    def _paths(self) -> pa.ChunkedArray:
        return pa.chunked_array([_field(batch, "path").cast(pa.string()) for batch in self._batches], pa.string())

    @cached_property
    def labels(self) -> np.ndarray:
        labels = np.concatenate([batch.column("label").to_numpy().astype(np.int64) for batch in self._batches])
        return labels if self._order is None else labels[self._order]

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
        return bytes(data[offsets[place] : offsets[place + 1]])  # a copy: here the disk is waited for

    def as_written(self) -> "ArrowFiles":
        """The same images in the order of the files."""
        return ArrowFiles([Path(shard) for shard in self.shards], in_order=True)

    def _row(self, index: int) -> int:
        return index if self._order is None else int(self._order[index])

    def __getstate__(self) -> dict[str, Any]:
        kept = ("shards", "in_order", "labels", "_order")
        return {name: value for name, value in self.__dict__.items() if name in kept}


def _batches_of(shard: str) -> list[pa.RecordBatch]:
    try:
        batches = list(pa.ipc.open_stream(pa.memory_map(shard)))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{shard} is not a whole Arrow file ({error}): copy it again") from error
    for batch in batches[:1]:
        if not {"image", "label"} <= set(batch.schema.names):
            raise ValueError(f"{shard} has the columns {', '.join(batch.schema.names)}: image and label are needed")
    return batches


def _field(batch: pa.RecordBatch, name: str) -> pa.Array:
    image = batch.column("image")
    if pa.types.is_struct(image.type):
        return image.field(name)
    return image if name == "bytes" else pa.nulls(len(image), pa.string())


def _places(batch: pa.RecordBatch, shards: list[str]) -> tuple[np.ndarray, memoryview]:
    column = _field(batch, "bytes")
    if column.null_count:
        raise ValueError(f"{Path(shards[0]).parent} has paths instead of images: save it again with embedded images")
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    _, offsets, data = column.buffers()
    return np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1], memoryview(data)


def parquet_shards(root: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in the root or its folder data."""
    return next(
        (
            found
            for name in SPLITS[split]
            for folder in (root, root / "data", root / name)
            if (found := sorted(folder.glob(f"{name}*.parquet")))
        ),
        [],
    )


def find_parquet(root: Path) -> Found:
    """Parquet files of columns image and label, as the Hugging Face hub has them."""
    splits: dict[str, Files] = {}
    for split, names in SPLITS.items():
        shards = parquet_shards(root, split)
        if not shards:
            raise ValueError(f"{root} has no {split} images: looked for {names[0]}-*.parquet, also in data/")
        splits[split] = ParquetFiles(shards)
    metadata = pq.read_schema(parquet_shards(root, "train")[0]).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return Found("Parquet files", class_names(features, splits), splits, random_access=False)


class ParquetFiles:
    """Images in the order of the files. Reading the next one is quick, any other one is not."""

    def __init__(self, shards: list[Path]) -> None:
        self.shards = [str(shard) for shard in shards]
        files = [pq.ParquetFile(shard) for shard in shards]
        self.groups = [(s, group) for s, file in enumerate(files) for group in range(file.metadata.num_row_groups)]
        rows = [files[s].metadata.row_group(group).num_rows for s, group in self.groups]
        self.starts = np.cumsum([0, *rows])
        self.labels = np.concatenate([file.read(["label"])["label"].to_numpy() for file in files]).astype(np.int64)
        self._loaded: tuple[int, pa.Array | None] = (-1, None)

    def path(self, index: int) -> str | None:
        return self._image(index)["path"].as_py()

    def name(self, index: int) -> str:
        path, (shard, _) = self.path(index), self.groups[self._group(index)]
        return f"{self.shards[shard]}, row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> bytes:
        return self._image(index)["bytes"].as_py()

    def _group(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def _image(self, index: int) -> pa.StructScalar:
        number = self._group(index)
        if self._loaded[0] != number:
            shard, group = self.groups[number]
            table = pq.ParquetFile(self.shards[shard]).read_row_group(group, ["image"])
            self._loaded = number, table["image"].combine_chunks()
        loaded = self._loaded[1]
        assert loaded is not None
        return loaded[index - int(self.starts[number])]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": (-1, None)}
