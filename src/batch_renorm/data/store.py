"""Writes and checks the store: a data set in a few big Arrow files with random access.

A store opens with `datasets.load_from_disk`. Each split is a folder of files with some thousand encoded images each,
byte for byte as they were, and a checksum of each. A file is written under another name and renamed, so that the
same command continues after a stop with the files that are missing. Only one process at a time prepares a store.
"""

import ctypes
import errno
import hashlib
import json
import multiprocessing
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from batch_renorm import durable
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.files import Files, Found, patiently, printable
from batch_renorm.data.tables import FINISHED, STORE, ArrowFiles, find_arrow, read_json
from batch_renorm.errors import TransientReadError, UserError

FOLDERS = {"train": "train", "val": "validation"}
BATCH = 256
"""Images in a record batch, about 28 MB of ImageNet."""


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
        count = -(-len(files.labels) // images)
        for number in range(count):
            path = target / FOLDERS[split] / f"data-{number:05d}-of-{count:05d}.arrow"
            result.append(Part(split, number * images, min((number + 1) * images, len(files.labels)), path))
    return result


def prepare(found: Found, target: Path, images_per_file: int, processes: int, progress: Callable[[int], Any]) -> None:
    """Write or finish the store of a data set; `progress` is called with the number of images of every file.

    Raises:
        UserError: the folder is in use or holds something else; the disk lacks space; or images are unreadable: the
            message names them, and everything else is written.
    """
    parts = parts_of(found, target, images_per_file)
    about: dict[str, Any] = {
        "images": {FOLDERS[split]: len(files.labels) for split, files in found.splits.items()},
        "images_per_file": images_per_file, "sorted": found.in_order, "source": fingerprint(found),
    }  # fmt: skip
    if _begun(target) and (target / FINISHED).exists():
        _check_same(target, about)
        progress(sum(about["images"].values()))
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        with durable.only_writer(target, "the store", "wait until it ends, or choose another folder"):
            if _begun(target):
                _check_same(target, about)
            else:
                durable.write_text(target / STORE, json.dumps(about, indent=1))
            for split in found.splits:
                (target / FOLDERS[split]).mkdir(exist_ok=True)
            missing = [part for part in parts if not part.path.exists()]
            progress(sum(part.stop - part.start for part in parts if part not in missing))
            _check_room(found, missing, target)
            try:
                bad = _in_processes(_Written(found, missing), processes, progress)
            finally:
                for rest in target.glob("**/*.part"):  # of a process that was killed
                    rest.unlink(missing_ok=True)
            _complain(bad, "get them again, and run the same command to write what is missing")
            _describe(found, parts, target)
    except TransientReadError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; mend that, or choose another folder"
        ) from error


def check(found: Found, processes: int, progress: Callable[[int], Any]) -> None:
    """Read a data set again, decode every image, and compare a store's checksums.

    Raises:
        UserError: something cannot be read, or differs from what was written; the message names it.
    """
    parts = parts_of(found, Path(), BATCH)
    _complain(_in_processes(_Checked(found, parts), processes, progress), "prepare the store again from its source")


class _Work(Dataset[tuple[int, list[str]]]):
    """Items are done by loader processes: the number of images that are done, and lines about those that are bad."""

    def __init__(self, found: Found, parts: list[Part]) -> None:
        self.found, self.parts, self.stop = found, parts, multiprocessing.Event()

    def __len__(self) -> int:
        return len(self.parts)

    def decodable(self, files: Files, index: int, bad: list[str]) -> bytes | None:
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
            return None


class _Unreadable(Exception):
    """Some images of a file cannot be read."""


class _Written(_Work):
    """Writes files of a store. A file with an unreadable image is not written."""

    def __getitem__(self, number: int) -> tuple[int, list[str]]:
        part = self.parts[number]
        bad: list[str] = []
        try:
            with durable.whole(part.path) as temporary:
                self._write(part, temporary, bad)
                if bad:
                    raise _Unreadable
        except _Unreadable:
            pass
        except TransientReadError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full: make room" if full else f"{error.strerror or error}: mend that"
            raise UserError(f"cannot write {part.path}, {reason}, and the same command goes on from there") from error
        return part.stop - part.start, bad

    def _write(self, part: Part, path: Path, bad: list[str]) -> None:
        files, schema = self.found.splits[part.split], schema_of(self.found)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(part.start, part.stop, BATCH):
                rows = []
                for index in range(start, min(start + BATCH, part.stop)):
                    data, label = self.decodable(files, index, bad) or b"", files.labels[index]
                    image = {"bytes": data, "path": files.path(index)}
                    rows.append({"image": image, "label": label, "crc32": checksum(image, label)})
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))


class _Checked(_Work):
    """Reads images again."""

    def __getitem__(self, number: int) -> tuple[int, list[str]]:
        part = self.parts[number]
        bad: list[str] = []
        files = self.found.splits[part.split]
        for index in range(part.start, part.stop):
            if isinstance(files, ArrowFiles) and "crc32" in files.schema.names:
                row = files.row(index)
                if row["crc32"] != checksum(row["image"], row["label"]):
                    bad.append(f"{files.name(index)}: its bytes are not those that were written")
                    continue
            self.decodable(files, index, bad)
        return part.stop - part.start, bad


def _in_processes(work: _Work, processes: int, progress: Callable[[int], Any]) -> list[str]:
    """The lines about bad images. The processes end when this one ends for any reason."""
    bad: list[str] = []
    loader = DataLoader(
        work, batch_size=None, num_workers=max(1, min(processes, len(work))), in_order=False, worker_init_fn=_start
    )
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
    return bad


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to every process: the main one handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the main process


def _begun(target: Path) -> bool:
    """Whether the folder has a store, finished or not.

    Raises:
        UserError: it has something else.
    """
    if (target / STORE).exists():
        return True
    others = [path for path in target.iterdir() if path.name != durable.LOCK] if target.exists() else []
    if others:
        raise UserError(f"{target} is not empty and not a store: choose another folder")
    return False


def _check_same(target: Path, about: dict[str, Any]) -> None:
    begun = read_json(target / STORE)
    images = begun.get("images_per_file")
    if images != about["images_per_file"]:
        raise UserError(
            f"{target} has {images} images a file: say --images-per-file {images}, or choose another folder"
        )
    if begun != about:
        raise UserError(f"{target} is the store of other images, or in another order: choose another folder")


def fingerprint(found: Found) -> str:
    """A number of the classes, the labels, and a few images."""
    digest = hashlib.sha256("\n".join(found.classes).encode("utf-8", "surrogateescape"))
    for files in found.splits.values():
        digest.update(np.asarray(files.labels, dtype=np.int64).tobytes())
        for index in np.linspace(0, len(files.labels) - 1, 3).astype(int).tolist():
            digest.update(files.read(index))
    return digest.hexdigest()[:16]


def checksum(image: dict[str, Any], label: int) -> int:
    return zlib.crc32(image["bytes"], zlib.crc32((image["path"] or "").encode(), int(label)))


def _check_room(found: Found, parts: list[Part], target: Path) -> None:
    """Check that the disk has enough space, estimated from an image of every file."""
    needed = 0
    for part in parts:
        needed += len(found.splits[part.split].read(part.start)) * (part.stop - part.start)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(f"{target} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


def features_of(found: Found) -> dict[str, Any]:
    """The columns, as `datasets` describes them."""
    return {
        "image": {"_type": "Image"}, "label": {"names": list(map(printable, found.classes)), "_type": "ClassLabel"},
        "crc32": {"dtype": "uint32", "_type": "Value"},
    }  # fmt: skip


def schema_of(found: Found) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features_of(found)}})}
    return pa.schema([("image", image), ("label", pa.int64()), ("crc32", pa.uint32())], metadata)


def _describe(found: Found, parts: list[Part], target: Path) -> None:
    """Write the files that `datasets.load_from_disk` needs."""
    for split in found.splits:
        folder = target / FOLDERS[split]
        state: dict[str, Any] = {
            "_data_files": [{"filename": part.path.name} for part in parts if part.split == split],
            "_fingerprint": fingerprint(found), "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
            "_output_all_columns": False, "_split": folder.name,
        }  # fmt: skip
        durable.write_text(folder / "dataset_info.json", json.dumps({"features": features_of(found)}, indent=1))
        durable.write_text(folder / "state.json", json.dumps(state, indent=1))
    durable.write_text(target / FINISHED, json.dumps({"splits": [FOLDERS[split] for split in found.splits]}))
    find_arrow(target, tuple(found.splits))


def _complain(bad: Sequence[str], cure: str) -> None:
    if bad:
        for line in bad:
            print(line, file=sys.stderr)
        raise UserError(
            f"{len(bad):,} of the images cannot be read, {'; '.join(bad[:3])}{' ...' * (len(bad) > 3)}: {cure}"
        )
