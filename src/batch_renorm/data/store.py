"""Writes and checks the store: a data set in a few big Arrow files with random access.

A store opens with `datasets.load_from_disk`. Each split is a folder of files with some thousand encoded images each,
byte for byte as they were, and a checksum of each. A file is written under another name and renamed, so that the
same command continues after a stop with the files that are missing. Only one process at a time prepares a store.
"""

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from batch_renorm import durable
from batch_renorm.data.files import Files, Found, patiently, printable
from batch_renorm.data.images import UnreadableImage, decode
from batch_renorm.data.tables import FINISHED, STORE, ArrowFiles, find_arrow, read_json
from batch_renorm.errors import TransientReadError, UserError

FOLDERS = {"train": "train", "val": "validation"}
BATCH = 256
"""Images in a record batch, about 28 MB of ImageNet."""

Progress = Callable[[int], Any]
"""Called with the number of images done since the last call."""


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` - 1 of a split, and their file in the store."""

    split: str
    start: int
    stop: int
    path: Path


def parts_of(found: Found, target: Path, images: int) -> list[Part]:
    """The files of a store with so many images each."""
    result = []
    for split, files in found.splits.items():
        total = len(files.labels)
        starts = range(0, total, images)
        for number, start in enumerate(starts):
            path = target / FOLDERS[split] / f"data-{number:05d}-of-{len(starts):05d}.arrow"
            result.append(Part(split, start, min(start + images, total), path))
    return result


def prepare(found: Found, target: Path, images_per_file: int, processes: int, progress: Progress) -> None:
    """Write or finish the store of a data set.

    Raises:
        UserError: the folder is in use or holds something else; the disk is full; or images are unreadable: the
            message names them, and everything else is written.
    """
    parts = parts_of(found, target, images_per_file)
    about: dict[str, Any] = {
        "images": {FOLDERS[split]: len(files.labels) for split, files in found.splits.items()},
        "images_per_file": images_per_file, "sorted": found.in_order, "source": fingerprint(found),
    }  # fmt: skip
    if is_begun(target, about) and (target / FINISHED).exists():  # perhaps on a read-only disk
        progress(sum(part.stop - part.start for part in parts))
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        with durable.only_writer(target, "the store", "wait until it ends, or choose another folder"):
            if not is_begun(target, about):
                durable.write_text(target / STORE, json.dumps(about, indent=1))
            for split in found.splits:
                (target / FOLDERS[split]).mkdir(exist_ok=True)
            missing = [part for part in parts if not part.path.exists()]
            progress(sum(part.stop - part.start for part in parts if part not in missing))
            try:
                in_processes(_Written(found, missing), processes, progress, "get them again, and run the same command")
            finally:
                for rest in target.glob("**/*.part"):  # of a process that was killed
                    rest.unlink(missing_ok=True)
            describe(found, parts, target, about["source"])
    except TransientReadError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; mend that, or choose another folder"
        ) from error


def check(found: Found, processes: int, progress: Progress) -> None:
    """Read a data set again, decode every image, and compare a store's checksums.

    Raises:
        UserError: something cannot be read, or differs from what was written; the message names it.
    """
    work = _Checked(found, parts_of(found, Path(), BATCH))
    in_processes(work, processes, progress, "prepare the store again from its source")


class _Checked(Dataset[tuple[int, list[str]]]):
    """Items are done by loader processes: the number of images that are done, and lines about those that are bad."""

    def __init__(self, found: Found, parts: list[Part]) -> None:
        self.found, self.parts, self.stop = found, parts, multiprocessing.Event()

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[int, list[str]]:
        part, bad = self.parts[number], list[str]()
        self.do(part, bad)
        return part.stop - part.start, bad

    def do(self, part: Part, bad: list[str]) -> None:
        files = self.found.splits[part.split]
        for index in range(part.start, part.stop):
            row = files.row(index) if isinstance(files, ArrowFiles) and "crc32" in files.schema.names else None
            if row is not None and row["crc32"] != checksum(row["image"], row["label"]):
                bad.append(f"{files.name(index)}: its bytes are not those that were written")
            else:
                self.decodable(files, index, bad)

    def decodable(self, files: Files, index: int, bad: list[str]) -> bytes:
        """The bytes of an image; nothing if it cannot be read, which is added to `bad`."""
        if self.stop.is_set():
            raise RuntimeError("asked to stop")  # the main process no longer waits for an answer
        try:
            data = patiently(partial(files.read, index), partial(files.name, index))
            decode(data)
            return data
        except TransientReadError:
            raise
        except (OSError, UnreadableImage) as error:
            bad.append(f"{files.name(index)}: {error}")
            return b""


class _Written(_Checked):
    """Writes files of a store. A file with an unreadable image is not written."""

    class Unreadable(Exception):
        pass

    def do(self, part: Part, bad: list[str]) -> None:
        try:
            with suppress(self.Unreadable), durable.whole(part.path) as temporary:
                self.write(part, temporary, bad)
                if bad:
                    raise self.Unreadable
        except TransientReadError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot write {part.path}, {reason}: mend that, and the same command goes on from there"
            ) from error

    def write(self, part: Part, path: Path, bad: list[str]) -> None:
        files, schema = self.found.splits[part.split], schema_of(self.found)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(part.start, part.stop, BATCH):
                rows = []
                for index in range(start, min(start + BATCH, part.stop)):
                    image = {"bytes": self.decodable(files, index, bad), "path": files.path(index)}
                    label = int(files.labels[index])
                    rows.append({"image": image, "label": label, "crc32": checksum(image, label)})
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def in_processes(work: _Checked, processes: int, progress: Progress, cure: str) -> None:
    """Do all of the work in processes, which end when this one ends for any reason.

    Raises:
        UserError: images are bad, which are also printed; or a process was killed.
    """
    bad: list[str] = []
    number = max(1, min(processes, len(work)))
    loader = DataLoader(work, batch_size=None, num_workers=number, in_order=False, worker_init_fn=_start)
    try:
        for done, lines in loader if len(work) else ():
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
            f"{len(bad):,} of the images cannot be read, {'; '.join(bad[:3])}{' ...' * (len(bad) > 3)}: {cure}"
        )


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to every process: the main one handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the main process


def is_begun(target: Path, about: dict[str, Any]) -> bool:
    """Whether the folder has this store, finished or not.

    Raises:
        UserError: it has something else.
    """
    if (target / STORE).exists():
        begun = read_json(target / STORE)
        if begun.get("images_per_file") != about["images_per_file"]:
            raise UserError(f"{target} has {begun.get('images_per_file')} images a file: say so with --images-per-file")
        if begun != about:
            raise UserError(f"{target} is the store of other images, or in another order: choose another folder")
        return True
    if target.exists() and set(os.listdir(target)) - {durable.LOCK}:
        raise UserError(f"{target} is not empty and not a store: choose another folder")
    return False


def fingerprint(found: Found) -> str:
    """A number of the classes, the labels, and a few images."""
    digest = hashlib.sha256("\n".join(map(printable, found.classes)).encode())
    for files in found.splits.values():
        digest.update(np.asarray(files.labels, dtype=np.int64).tobytes())
        for index in np.linspace(0, len(files.labels) - 1, 3).astype(int).tolist():
            digest.update(files.read(index))
    return digest.hexdigest()[:16]


def checksum(image: dict[str, Any], label: int) -> int:
    return zlib.crc32(image["bytes"], zlib.crc32((image["path"] or "").encode(), label))


def features_of(found: Found) -> dict[str, Any]:
    """The columns, as `datasets` describes them."""
    label = {"names": list(map(printable, found.classes)), "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, "label": label, "crc32": {"dtype": "uint32", "_type": "Value"}}


def schema_of(found: Found) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features_of(found)}})}
    return pa.schema([("image", image), ("label", pa.int64()), ("crc32", pa.uint32())], metadata)


def describe(found: Found, parts: list[Part], target: Path, source: str) -> None:
    """Write the files that `datasets.load_from_disk` needs, and open the store."""
    for split in found.splits:
        folder = target / FOLDERS[split]
        state: dict[str, Any] = {
            "_data_files": [{"filename": part.path.name} for part in parts if part.split == split],
            "_fingerprint": source, "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
            "_output_all_columns": False, "_split": folder.name,
        }  # fmt: skip
        durable.write_text(folder / "dataset_info.json", json.dumps({"features": features_of(found)}, indent=1))
        durable.write_text(folder / "state.json", json.dumps(state, indent=1))
    durable.write_text(target / FINISHED, json.dumps({"splits": [FOLDERS[split] for split in found.splits]}))
    find_arrow(target, tuple(found.splits))
