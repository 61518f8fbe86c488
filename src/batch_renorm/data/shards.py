"""One file of the store: written whole or not at all, read back, many of them in processes."""

import ctypes
import errno
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_renorm.data import decoding, durable
from batch_renorm.data.files import Files, Found

FOLDERS = {"train": "train", "val": "validation"}
BATCH = 256
"""Images in a record batch: opening a store reads the head of each, of about 28 MB of ImageNet."""

Progress = Callable[[int], Any]
"""Told how many images more are done."""


@dataclass(frozen=True)
class Shard:
    """A file of the store: its place, what is in it, and after writing its size, checksum and kinds of images."""

    split: str
    number: int
    start: int
    stop: int
    file: str
    bytes: int = 0
    crc32: int = 0
    kinds: dict[str, int] = field(default_factory=dict)


def shards_of(found: Found, images_per_shard: int) -> list[Shard]:
    result = []
    for split, files in found.splits.items():
        count = -(-len(files.labels) // images_per_shard)
        for number in range(count):
            start = number * images_per_shard
            stop = min(start + images_per_shard, len(files.labels))
            result.append(Shard(split, number, start, stop, f"data-{number:05d}-of-{count:05d}.arrow"))
    return result


def in_processes(task: Callable, items: list, found: Found, processes: int, progress: Progress) -> Iterator:
    """Do a task in processes, in any order, and say how many images are done all the while.

    The processes end with this one, however it ends.

    Raises:
        ValueError: one of them was killed.
    """
    context = multiprocessing.get_context()
    counter, stop = context.Value("q", 0), context.Value("b", 0)
    pending: set[Future] = set()
    seen = 0
    with ProcessPoolExecutor(max(1, processes), context, initializer=_start, initargs=(found, counter, stop)) as pool:
        try:
            pending = {pool.submit(task, *item) for item in items}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                progress(counter.value - seen)
                seen = counter.value
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a process that works on the images was killed, perhaps because memory ran out (then take fewer: "
                "--processes); run the same command again, what is written stays"
            ) from error
        finally:
            stop.value = 1  # after the image that they are at
            pool.shutdown(cancel_futures=True)


_process: dict[str, Any] = {}
"""What a process works on; its tasks name only places."""


def _start(found: Found, counter: Any, stop: Any) -> None:
    _process.update(found=found, counter=counter, stop=stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to every process: the first one answers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """However the parent ends, this process does, too: on Linux at once, elsewhere as soon as it is noticed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _count(images: int) -> None:
    with _process["counter"].get_lock():
        _process["counter"].value += images


class _Unreadable(Exception):
    """Some images of a file cannot be read."""


def write(target: Path, shard: Shard) -> tuple[Shard, list[str]]:
    """Write one file, under another name until it is whole; with unreadable images it is left out.

    Raises:
        ValueError: the disk is full, or the file cannot be written.
    """
    path = target / FOLDERS[shard.split] / shard.file
    unreadable: list[str] = []
    try:
        with durable.whole(path) as temporary:
            kinds = _write_images(temporary, shard, unreadable)
            if unreadable:
                raise _Unreadable
            checksum, size = _checksum(temporary)
        written = Shard(**asdict(shard) | {"bytes": size, "crc32": checksum, "kinds": dict(kinds)})
        durable.write_text(note_of(target, shard), json.dumps(asdict(written)))
        return written, []
    except _Unreadable:
        return shard, unreadable
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full: make room" if full else f"{error.strerror or error}: mend that"
        raise ValueError(f"cannot write {path}, {reason}, and the same command goes on from there") from error


def _write_images(path: Path, shard: Shard, unreadable: list[str]) -> Counter[str]:
    """The images of a file, as Arrow; returns how many of each kind, and fills `unreadable`."""
    found: Found = _process["found"]
    files = found.splits[shard.split]
    kinds: Counter[str] = Counter()
    schema = _schema(found)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(shard.start, shard.stop, BATCH):
            stop = min(start + BATCH, shard.stop)
            images = []
            for index in range(start, stop):
                data = _decodable(files, index, unreadable)
                images.append({"bytes": data, "path": files.path(index)})
                kinds[decoding.kind(data) if data else "unreadable"] += 1
            labels = files.labels[start:stop]
            writer.write_batch(pa.record_batch([pa.array(images, schema.field("image").type), labels], schema=schema))
            _count(stop - start)
    return kinds


def _decodable(files: Files, index: int, unreadable: list[str]) -> bytes:
    if _process["stop"].value:
        raise RuntimeError("asked to stop")  # by the process that no longer waits for an answer
    try:
        data = files.read(index)
        decoding.decode(data)
        return data
    except (OSError, decoding.UnreadableImage) as error:
        unreadable.append(f"{files.name(index)}: {error}")
        return b""


def read_again(target: Path, shard: Shard) -> tuple[Shard, list[str]]:
    path = target / FOLDERS[shard.split] / shard.file
    try:
        checksum = _checksum(path)[0]
    except OSError as error:
        return shard, [f"{path}: {error.strerror or error}"]
    if checksum != shard.crc32:
        return shard, [f"{path}: its bytes are not those that were written"]
    files = _process["found"].splits[shard.split].as_written()
    bad: list[str] = []
    for start in range(shard.start, shard.stop, BATCH):
        stop = min(start + BATCH, shard.stop)
        for index in range(start, stop):
            _decodable(files, index, bad)
        _count(stop - start)
    return shard, bad


def _checksum(path: Path) -> tuple[int, int]:
    """CRC-32 and size of a file."""
    checksum = size = 0
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            checksum, size = zlib.crc32(part, checksum), size + len(part)
    return checksum, size


def features_of(found: Found) -> dict[str, Any]:
    return {"image": {"_type": "Image"}, "label": {"names": found.classes, "_type": "ClassLabel"}}


def _schema(found: Found) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": features_of(found)}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata)


def note_of(target: Path, shard: Shard) -> Path:
    """Stands beside a file that is whole, until all are."""
    return target / FOLDERS[shard.split] / f"{shard.file}.json"


def noted(target: Path, shard: Shard) -> Shard | None:
    """A file that is whole, as its note has it; None where it, or the note, is not."""
    try:
        written = Shard(**json.loads(note_of(target, shard).read_bytes()))
        size = (target / FOLDERS[shard.split] / shard.file).stat().st_size
        return written if written.bytes == size and (written.start, written.stop) == (shard.start, shard.stop) else None
    except (OSError, ValueError, TypeError):
        return None
