"""One file of the store: written whole or not at all, read back, many of them in processes."""

import json
import multiprocessing
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from batch_renorm.data import decoding
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
    """Do a task in processes, in any order, and say how many images are done all the while."""
    context = multiprocessing.get_context()
    counter = context.Value("q", 0)
    pending: set[Future] = set()
    seen = 0
    with ProcessPoolExecutor(max(1, processes), context, initializer=_start, initargs=(found, counter)) as pool:
        try:
            pending = {pool.submit(task, *item) for item in items}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                progress(counter.value - seen)
                seen = counter.value
                for future in finished:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_process: dict[str, Any] = {}
"""What a process works on; its tasks name only places."""


def _start(found: Found, counter: Any) -> None:
    _process.update(found=found, counter=counter)


def _count(images: int) -> None:
    with _process["counter"].get_lock():
        _process["counter"].value += images


def write(target: Path, shard: Shard) -> tuple[Shard, list[str]]:
    """Write one file, under another name until it is whole; with unreadable images it is left out."""
    found: Found = _process["found"]
    files = found.splits[shard.split]
    path = target / FOLDERS[shard.split] / shard.file
    temporary = path.with_suffix(".part")
    kinds: Counter[str] = Counter()
    unreadable: list[str] = []
    schema = _schema(found)
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
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
    if unreadable:
        temporary.unlink()
        return shard, unreadable
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    checksum, size = _checksum(temporary)
    temporary.replace(path)
    written = Shard(**asdict(shard) | {"bytes": size, "crc32": checksum, "kinds": dict(kinds)})
    write_text(note_of(target, shard), json.dumps(asdict(written)))
    return written, []


def _decodable(files: Files, index: int, unreadable: list[str]) -> bytes:
    try:
        data = files.read(index)
        decoding.decode(data)
        return data
    except (OSError, decoding.UnreadableImage) as error:
        unreadable.append(f"{files.name(index)}: {error}")
        return b""


def read_again(target: Path, shard: Shard) -> tuple[Shard, list[str]]:
    path = target / FOLDERS[shard.split] / shard.file
    if _checksum(path)[0] != shard.crc32:
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


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)
