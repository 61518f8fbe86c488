"""Writes a store: a data set in a few big Arrow files with random access, which `tables.find` reads.

A store opens with `datasets.load_from_disk`. Each split is a folder of files with some thousand encoded images each,
byte for byte as they were. A file is written under another name and renamed, so that the same command continues after
a stop with the files that are missing. Only one process at a time prepares a store, with one file in memory.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_renorm import durable
from batch_renorm.data.files import Files, Found, printable
from batch_renorm.data.images import UnreadableImage, decode
from batch_renorm.data.tables import FINISHED, SPLITS, STORE
from batch_renorm.errors import TransientReadError, UserError

BATCH = 256
"""Images in a record batch, about 28 MB of ImageNet."""

Progress = Callable[[int], Any]
"""Called with the number of images done since the last call."""


@dataclass(frozen=True)
class Shard:
    """A file of a store, and the images of a split that are in it."""

    path: Path
    split: str
    images: range


def shards_of(found: Found, target: Path, images: int) -> list[Shard]:
    """The files of a store with so many images each."""
    result = []
    for split, files in found.splits.items():
        whole = range(len(files.labels))
        starts = whole[::images]
        for number, start in enumerate(starts):
            path = target / SPLITS[split][0] / f"data-{number:05d}-of-{len(starts):05d}.arrow"
            result.append(Shard(path, split, whole[start : start + images]))
    return result


def prepare(found: Found, target: Path, images_per_file: int, threads: int, progress: Progress) -> None:
    """Write or finish the store of a data set.

    Raises:
        UserError: the folder is in use or holds something else; the disk is full; or images are unreadable: the
            message names them, and everything else is written.
    """
    source = fingerprint(found)
    about = json.dumps({"images_per_file": images_per_file, "source": source}, indent=1)
    check_target(target, about)
    shards = shards_of(found, target, images_per_file)
    missing = [shard for shard in shards if not shard.path.exists()]
    progress(sum(len(shard.images) for shard in shards if shard not in missing))
    target.mkdir(parents=True, exist_ok=True)
    with durable.only_writer(target, "the store", "wait until it ends, or choose another folder"):
        durable.write_text(target / STORE, about)
        for part in target.glob("**/*.part"):  # of a process that was killed
            part.unlink()
        write(found, missing, threads, progress)
        describe(found, shards, target, source)


def check_target(target: Path, about: str) -> None:
    """Raise a UserError unless a folder is new, empty, or has this store, finished or not."""
    if (target / STORE).exists():
        if (target / STORE).read_bytes() != about.encode():
            raise UserError(
                f"{target} is the store of other images, or has another number of images a file (--images-per-file): "
                "choose another folder"
            )
    elif target.exists() and set(os.listdir(target)) - {durable.LOCK}:
        raise UserError(f"{target} is not empty and not a store: choose another folder")


def write(found: Found, shards: list[Shard], threads: int, progress: Progress) -> None:
    """Write files, but for those with unreadable images.

    Raises:
        UserError: images are unreadable, which are also printed; or a file cannot be written.
    """
    unreadable: list[str] = []
    with ThreadPoolExecutor(threads) as pool:  # reading and decoding leave Python to other threads
        for shard in shards:
            rows = []
            for row in pool.map(partial(checked_row, found.splits[shard.split]), shard.images):
                progress(1)
                if isinstance(row, str):
                    unreadable.append(row)
                else:
                    rows.append(row)
            if len(rows) == len(shard.images):
                write_file(shard.path, rows, schema_of(found))
    if unreadable:
        print(*unreadable, sep="\n", file=sys.stderr)
        raise UserError(
            f"{len(unreadable):,} of the images cannot be read, {'; '.join(unreadable[:3])}"
            f"{' ...' * (len(unreadable) > 3)}: get them again, and run the same command"
        )


def checked_row(files: Files, index: int) -> dict[str, Any] | str:
    """An image's row in a store, or a line about it if it cannot be decoded."""
    try:
        data = files.read(index)
        decode(data)
    except TransientReadError:
        raise
    except (OSError, UnreadableImage) as error:
        return f"{files.name(index)}: {error}"
    return {"image": {"bytes": data, "path": files.path(index)}, "label": int(files.labels[index])}


def write_file(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with durable.whole(path) as temporary, pa.ipc.new_stream(str(temporary), schema) as writer:
            for start in range(0, len(rows), BATCH):
                writer.write_batch(pa.RecordBatch.from_pylist(rows[start : start + BATCH], schema))
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): mend that, and the same command goes on") from error


def fingerprint(found: Found) -> str:
    """A number of the classes, the labels, and a few images."""
    digest = hashlib.sha256("\n".join(map(printable, found.classes)).encode())
    for files in found.splits.values():
        digest.update(files.labels.tobytes())
        for index in np.linspace(0, len(files.labels) - 1, 3).astype(int).tolist():
            digest.update(files.read(index))
    return digest.hexdigest()[:16]


def features_of(found: Found) -> dict[str, Any]:
    """The columns, as `datasets` describes them."""
    label = {"names": list(map(printable, found.classes)), "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, "label": label}


def schema_of(found: Found) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features_of(found)}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata)


def describe(found: Found, shards: list[Shard], target: Path, source: str) -> None:
    """Write the files that `datasets.load_from_disk` needs."""
    for split in found.splits:
        folder = target / SPLITS[split][0]
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard.path.name} for shard in shards if shard.split == split],
            "_fingerprint": source, "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
            "_output_all_columns": False, "_split": folder.name,
        }  # fmt: skip
        durable.write_text(folder / "dataset_info.json", json.dumps({"features": features_of(found)}, indent=1))
        durable.write_text(folder / "state.json", json.dumps(state, indent=1))
    durable.write_text(target / FINISHED, json.dumps({"splits": [SPLITS[split][0] for split in found.splits]}))
