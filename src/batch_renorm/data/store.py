"""Writes and checks the store: a data set in few big files that are read at any place.

A folder a split, of Arrow files with some thousand encoded images each, laid out as Hugging Face's
`datasets.load_from_disk` opens it, and store.json: how many images, the size and checksum of every file.
Images are stored as they came, byte for byte, and each is decoded once before it counts.

A file is written whole or not at all, and one that is there is not written again: preparing goes on where
it was stopped.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from batch_renorm.data import arrow
from batch_renorm.data.files import Found
from batch_renorm.data.shards import (
    FOLDERS,
    Progress,
    Shard,
    features_of,
    in_processes,
    note_of,
    read_again,
    shards_of,
    write,
    write_text,
)
from batch_renorm.data.sources import find


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
        note = note_of(target, shard)
        done.append(Shard(**json.loads(note.read_text()))) if note.exists() else missing.append(shard)
    progress(sum(shard.stop - shard.start for shard in done))
    if missing:
        _room(found, missing, target)
    unreadable: list[str] = []
    for written, bad in in_processes(write, [(target, shard) for shard in missing], found, processes, progress):
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
    write_text(path, json.dumps(manifest, indent=1))
    for shard in plan:
        note_of(target, shard).unlink()
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
    bad = [line for _, lines in in_processes(read_again, tasks, found, processes, progress) for line in lines]
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
    write_text(path, json.dumps(manifest, indent=1))
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


def _describe(folder: Path, name: str, found: Found, shards: list[Shard], fingerprint: str) -> None:
    """What `datasets.load_from_disk` looks for."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards], "_fingerprint": fingerprint[:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": name,
    }  # fmt: skip
    write_text(folder / "dataset_info.json", json.dumps({"features": features_of(found)}, indent=1))
    write_text(folder / "state.json", json.dumps(state, indent=1))
    write_text(folder.parent / "dataset_dict.json", json.dumps({"splits": list(FOLDERS.values())}))


def _complaint(lines: list[str], cure: str) -> str:
    shown = "\n  ".join(lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return f"{len(lines)} of the images cannot be read; {cure}:\n  {shown}{more}"
