"""Writes and checks the store: a data set in few big files that are read at any place.

A folder a split, of Arrow files with some thousand encoded images each, laid out as Hugging Face's
`datasets.load_from_disk` opens it, and store.json: how many images, the size and checksum of every file.
Images are stored as they came, byte for byte, and each is decoded once before it counts.

A file is written whole or not at all, and one that is there is not written again: preparing goes on where
it was stopped.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch_renorm.data import arrow, decoding
from batch_renorm.data.files import Files, Found
from batch_renorm.data.sources import find

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


def prepare(found: Found, target: Path, images_per_shard: int, processes: int, progress: Progress) -> dict[str, Any]:
    """Write, or finish, the store of a data set; returns its manifest.

    Raises:
        ValueError: the folder holds another data set's store, there is no room, or images cannot be read: all
            of them are named, and everything else is written.
    """
    plan = shards_of(found, images_per_shard)
    path = target / arrow.STORE
    manifest = _begin(found, plan, target)
    if manifest["finished"]:
        progress(sum(shard.stop - shard.start for shard in plan))
        return manifest
    done: list[Shard] = []
    missing = []
    for shard in plan:
        note = _note(target, shard)
        done.append(Shard(**json.loads(note.read_text()))) if note.exists() else missing.append(shard)
    progress(sum(shard.stop - shard.start for shard in done))
    if missing:
        _room(found, missing, target)
    unreadable: list[str] = []
    for written, bad in _in_processes(_write, [(target, shard) for shard in missing], found, processes, progress):
        unreadable += bad
        if not bad:
            done.append(written)
    if unreadable:
        raise ValueError(_complaint(unreadable, "get them again, and run the same command to write what is missing"))
    for split, folder in FOLDERS.items():
        parts = sorted((s for s in done if s.split == split), key=lambda s: s.number)
        _describe(target / folder, folder, found, parts, manifest["source_digest"])
        rows = [{key: value for key, value in asdict(part).items() if key not in ("split", "number")} for part in parts]
        manifest["splits"][folder] = {"images": parts[-1].stop, "shards": rows}
    manifest["finished"] = True
    _write_text(path, json.dumps(manifest, indent=1))
    for shard in plan:
        _note(target, shard).unlink()
    return manifest


def check(target: Path, processes: int, progress: Progress) -> dict[str, Any]:
    """Read all of a store again: files as they were written, every image decoded; returns its manifest.

    Raises:
        ValueError: what is not as it was written, all of it.
    """
    if not (target / arrow.STORE).exists():
        raise ValueError(f"{target} is no store: it has no {arrow.STORE}")
    found = find(target)
    manifest: dict[str, Any] = json.loads((target / arrow.STORE).read_text())
    tasks = []
    for split, folder in FOLDERS.items():
        entry = manifest["splits"][folder]
        labels = found.splits[split].labels
        if len(labels) != entry["images"] or len(np.unique(labels)) > len(found.classes):
            raise ValueError(f"{target / folder} has {len(labels):,} images where {entry['images']:,} were written")
        tasks += [(target, Shard(split, i, **shard)) for i, shard in enumerate(entry["shards"])]
    bad = [line for _, lines in _in_processes(_check, tasks, found, processes, progress) for line in lines]
    if bad:
        raise ValueError(_complaint(bad, "prepare the store again from its source"))
    return manifest


def _begin(found: Found, plan: list[Shard], target: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    for files in found.splits.values():
        digest.update(files.labels.tobytes())
        names = getattr(files, "names", None)
        digest.update("\n".join(names.to_pylist() if names is not None else [str(len(files.labels))]).encode())
    digest.update(str([(shard.start, shard.stop) for shard in plan]).encode())
    path = target / arrow.STORE
    if path.exists():
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["source_digest"] != digest.hexdigest():
            raise ValueError(f"{target} holds the store of another data set, or of other files: choose another folder")
        return manifest
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty and not a store: choose another folder")
    try:
        for folder in FOLDERS.values():
            (target / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror}; choose another folder") from error
    manifest = {
        "format": 1, "finished": False, "source": found.kind, "source_digest": digest.hexdigest(),
        "classes": len(found.classes), "in_order": found.random_access, "splits": {},
    }  # fmt: skip
    _write_text(path, json.dumps(manifest, indent=1))
    return manifest


def _room(found: Found, shards: list[Shard], target: Path) -> None:
    """Whether the disk has room, told from a few images of every file that is to be written."""
    needed = 0.0
    for shard in shards:
        places = np.linspace(shard.start, shard.stop - 1, 4 if found.random_access else 1).astype(int)
        sizes = []
        for place in places:
            try:
                sizes.append(len(found.splits[shard.split].read(int(place))))
            except OSError:  # named when it is written
                continue
        needed += float(np.mean(sizes or [0])) * (shard.stop - shard.start)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ValueError(f"{target} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


def _in_processes(task: Callable, items: list, found: Found, processes: int, progress: Progress) -> Iterator:
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


def _write(target: Path, shard: Shard) -> tuple[Shard, list[str]]:
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
    _write_text(_note(target, shard), json.dumps(asdict(written)))
    return written, []


def _decodable(files: Files, index: int, unreadable: list[str]) -> bytes:
    try:
        data = files.read(index)
        decoding.decode(data)
        return data
    except (OSError, decoding.UnreadableImage) as error:
        unreadable.append(f"{files.name(index)}: {error}")
        return b""


def _check(target: Path, shard: Shard) -> tuple[Shard, list[str]]:
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


def _features(found: Found) -> dict[str, Any]:
    return {"image": {"_type": "Image"}, "label": {"names": found.classes, "_type": "ClassLabel"}}


def _schema(found: Found) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata = {"huggingface": json.dumps({"info": {"features": _features(found)}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata)


def _describe(folder: Path, name: str, found: Found, shards: list[Shard], fingerprint: str) -> None:
    """What `datasets.load_from_disk` looks for."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards], "_fingerprint": fingerprint[:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": name,
    }  # fmt: skip
    _write_text(folder / "dataset_info.json", json.dumps({"features": _features(found)}, indent=1))
    _write_text(folder / "state.json", json.dumps(state, indent=1))
    _write_text(folder.parent / "dataset_dict.json", json.dumps({"splits": list(FOLDERS.values())}))


def _note(target: Path, shard: Shard) -> Path:
    """Stands beside a file that is whole, until all are."""
    return target / FOLDERS[shard.split] / f"{shard.file}.json"


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def _complaint(lines: list[str], cure: str) -> str:
    shown = "\n  ".join(lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return f"{len(lines)} of the images cannot be read; {cure}:\n  {shown}{more}"
