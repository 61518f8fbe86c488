"""The files of a store: each written whole or not at all, and read back, in parallel processes."""

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

from batch_renorm import durable
from batch_renorm.data import decoding, strips
from batch_renorm.data.files import Files, Found
from batch_renorm.errors import UserError

FOLDERS = {"train": "train", "val": "validation"}
BATCH = 256
"""Images in a record batch, about 28 MB of ImageNet: opening a store reads the header of every batch."""

Progress = Callable[[int], Any]
"""Called with the number of images done since the last call."""


@dataclass(frozen=True)
class Shard:
    """A file of the store: its name and images, and after writing its size, checksum and kinds of images."""

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


def in_processes(
    task: Callable, items: list, found: Found, processes: int, progress: Progress, in_strips: bool = False
) -> Iterator:
    """Run a task in processes, in any order, and report progress meanwhile.

    The processes end when this one ends for any reason.

    Raises:
        UserError: a process was killed.
    """
    context = multiprocessing.get_context()
    counter, stop = context.Value("q", 0), context.Value("b", 0)
    pending: set[Future] = set()
    seen = 0
    setting = found, counter, stop, in_strips
    with ProcessPoolExecutor(max(1, processes), context, initializer=_start, initargs=setting) as pool:
        try:
            pending = {pool.submit(task, *item) for item in items}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                progress(counter.value - seen)
                seen = counter.value
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that works on the images was killed, perhaps because memory ran out (then take fewer: "
                "--processes); run the same command again, what is written stays"
            ) from error
        finally:
            stop.value = 1  # processes stop after their current image
            pool.shutdown(cancel_futures=True)


_process: dict[str, Any] = {}
"""What a process works on; its tasks give only places in it."""


def _start(found: Found, counter: Any, stop: Any, in_strips: bool) -> None:
    _process.update(found=found, counter=counter, stop=stop, in_strips=in_strips)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C goes to every process: the main one handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()


def end_with_parent() -> None:
    """End this process when the parent ends for any reason: on Linux at once, elsewhere soon after."""
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
    """Write one file, under a temporary name until it is complete; no file if images are unreadable.

    Raises:
        UserError: the disk is full, or the file cannot be written.
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
        raise UserError(f"cannot write {path}, {reason}, and the same command goes on from there") from error


def _write_images(path: Path, shard: Shard, unreadable: list[str]) -> Counter[str]:
    """Write the images of a file as Arrow; return the number of each kind, and fill `unreadable`."""
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
                data = strips.in_strips(data) if _process["in_strips"] else data
                images.append({"bytes": data, "path": files.path(index)})
                kind = decoding.kind(data) if data else "unreadable"
                kinds[kind if strips.strips_of(data) is None else f"{kind} in strips"] += 1
            labels = files.labels[start:stop]
            writer.write_batch(pa.record_batch([pa.array(images, schema.field("image").type), labels], schema=schema))
            _count(stop - start)
    return kinds


def _decodable(files: Files, index: int, unreadable: list[str]) -> bytes:
    if _process["stop"].value:
        raise RuntimeError("asked to stop")  # the main process no longer waits for an answer
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
    """The note beside a complete file, kept until all files are complete."""
    return target / FOLDERS[shard.split] / f"{shard.file}.json"


def noted(target: Path, shard: Shard) -> Shard | None:
    """The entry of a complete file, from its note; None if the file or the note is not complete."""
    try:
        written = Shard(**json.loads(note_of(target, shard).read_bytes()))
        size = (target / FOLDERS[shard.split] / shard.file).stat().st_size
        return written if written.bytes == size and (written.start, written.stop) == (shard.start, shard.stop) else None
    except (OSError, ValueError, TypeError):
        return None
