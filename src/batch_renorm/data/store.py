"""Writes a store: a data set in a few big Arrow files with random access, which `tables.find` reads.

A store opens with `datasets.load_from_disk`. Each split is a folder of files with some thousand encoded images each,
byte for byte as they were. A file is written under another name and renamed, so that the same command continues after
a stop with the files that are missing. Only one process at a time prepares a store.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from batch_renorm import durable
from batch_renorm.data.files import Files, Found, printable, reading
from batch_renorm.data.images import UnreadableImage, decode
from batch_renorm.data.loaders import loader
from batch_renorm.data.tables import FINISHED, STORE
from batch_renorm.errors import TransientReadError, UserError

FOLDERS = {"train": "train", "val": "validation"}
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
        total = len(files.labels)
        starts = range(0, total, images)
        for number, start in enumerate(starts):
            path = target / FOLDERS[split] / f"data-{number:05d}-of-{len(starts):05d}.arrow"
            result.append(Shard(path, split, range(start, min(start + images, total))))
    return result


def prepare(found: Found, target: Path, images_per_file: int, processes: int, progress: Progress) -> None:
    """Write or finish the store of a data set.

    Raises:
        UserError: the folder is in use or holds something else; the disk is full; or images are unreadable: the
            message names them, and everything else is written.
    """
    about: dict[str, Any] = {"images_per_file": images_per_file, "source": fingerprint(found)}
    check_target(target, about)
    shards = shards_of(found, target, images_per_file)
    missing = [shard for shard in shards if not shard.path.exists()]
    progress(sum(len(shard.images) for shard in shards if shard not in missing))
    if (target / FINISHED).exists() and not missing:  # perhaps on a read-only disk
        return
    target.mkdir(parents=True, exist_ok=True)
    with durable.only_writer(target, "the store", "wait until it ends, or choose another folder"):
        durable.write_text(target / STORE, json.dumps(about, indent=1))
        for part in target.glob("**/*.part"):  # of a process that was killed
            part.unlink()
        for split in found.splits:
            (target / FOLDERS[split]).mkdir(exist_ok=True)
        write_shards(_Writing(found, missing), processes, progress)
        describe(found, shards, target, about["source"])


def check_target(target: Path, about: dict[str, Any]) -> None:
    """Check that a folder is new, empty, or has this store, finished or not.

    Raises:
        UserError: it has something else.
    """
    if (target / STORE).exists():
        with reading(target / STORE, "JSON", "choose another folder"):
            begun = dict(json.loads((target / STORE).read_bytes()))
        if begun != about:
            raise UserError(
                f"{target} is the store of other images, or has {begun.get('images_per_file')} images a file "
                "(--images-per-file): choose another folder"
            )
    elif target.exists() and set(os.listdir(target)) - {durable.LOCK}:
        raise UserError(f"{target} is not empty and not a store: choose another folder")


class _Writing(Dataset[tuple[int, list[str]]]):
    """Items are files that loader processes write: the number of images, and lines about those that are unreadable.

    A file with an unreadable image is not written.
    """

    class Unreadable(Exception):
        pass

    def __init__(self, found: Found, shards: list[Shard]) -> None:
        self.found, self.shards, self.stop = found, shards, multiprocessing.Event()

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> tuple[int, list[str]]:
        shard, bad = self.shards[number], list[str]()
        try:
            with suppress(self.Unreadable), durable.whole(shard.path) as temporary:
                self.write(shard, temporary, bad)
                if bad:
                    raise self.Unreadable
        except TransientReadError:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {shard.path}, {reason}: mend that, and the same command goes on") from error
        return len(shard.images), bad

    def write(self, shard: Shard, path: Path, bad: list[str]) -> None:
        files, schema = self.found.splits[shard.split], schema_of(self.found)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(0, len(shard.images), BATCH):
                rows = [
                    {"image": {"bytes": self.read(files, i, bad), "path": files.path(i)}, "label": int(files.labels[i])}
                    for i in shard.images[start : start + BATCH]
                ]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))

    def read(self, files: Files, index: int, bad: list[str]) -> bytes:
        """The bytes of an image; nothing if it cannot be decoded, which is added to `bad`."""
        if self.stop.is_set():
            raise RuntimeError("asked to stop")  # the main process no longer waits for an answer
        try:
            data = files.read(index)
            decode(data)
            return data
        except TransientReadError:
            raise
        except (OSError, UnreadableImage) as error:
            bad.append(f"{files.name(index)}: {error}")
            return b""


def write_shards(work: _Writing, processes: int, progress: Progress) -> None:
    """Write files in processes, which end when this one ends.

    Raises:
        UserError: images are unreadable, which are also printed; or a process was killed.
    """
    bad: list[str] = []
    number = max(1, min(processes, len(work)))
    written = loader(work, number, in_order=False) if len(work) else ()
    try:
        for done, lines in written:
            progress(done)
            bad += lines
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that works on the images was killed, perhaps because memory ran out (then take fewer: "
            "--processes); run the same command again, what is written stays"
        ) from error
    finally:
        work.stop.set()
    if bad:
        print(*bad, sep="\n", file=sys.stderr)
        raise UserError(
            f"{len(bad):,} of the images cannot be read, {'; '.join(bad[:3])}{' ...' * (len(bad) > 3)}: get them "
            "again, and run the same command"
        )


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
    return {
        "image": {"_type": "Image"}, "label": {"names": list(map(printable, found.classes)), "_type": "ClassLabel"},
    }  # fmt: skip


def schema_of(found: Found) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features_of(found)}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata)


def describe(found: Found, shards: list[Shard], target: Path, source: str) -> None:
    """Write the files that `datasets.load_from_disk` needs."""
    for split in found.splits:
        folder = target / FOLDERS[split]
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard.path.name} for shard in shards if shard.split == split],
            "_fingerprint": source, "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
            "_output_all_columns": False, "_split": folder.name,
        }  # fmt: skip
        durable.write_text(folder / "dataset_info.json", json.dumps({"features": features_of(found)}, indent=1))
        durable.write_text(folder / "state.json", json.dumps(state, indent=1))
    durable.write_text(target / FINISHED, json.dumps({"splits": [FOLDERS[split] for split in found.splits]}))
