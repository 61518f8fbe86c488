"""Writes and checks the store: a data set in a few big files with random access.

Each split is a folder of Arrow files with some thousand encoded images each, in the layout of Hugging Face's
`datasets.load_from_disk`. store.json has the number of images, and the size and checksum of every file.
Images are stored unchanged, byte for byte, and each is decoded once as a check. With `in_strips`, JPEGs are written
in strips: their pixels are unchanged, and a crop is read without the rest (`strips.py`).

Files are written whole or not at all, and existing files are not written again: a stopped preparation continues
with the same images. Only one process at a time prepares a store.
"""

import hashlib
import json
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from batch_renorm import durable
from batch_renorm.data import arrow, strips
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.files import Found, reading, stems
from batch_renorm.data.shards import (
    FOLDERS,
    Progress,
    Shard,
    features_of,
    in_processes,
    note_of,
    noted,
    read_again,
    shards_of,
    write,
)
from batch_renorm.data.sources import find
from batch_renorm.errors import UserError


def prepare(
    found: Found, target: Path, images_per_shard: int, processes: int, progress: Progress, in_strips: bool = False
) -> dict[str, Any]:
    """Write or finish the store of a data set; return its manifest.

    Raises:
        UserError: the folder is in use or holds another data set's store; the disk lacks space; or images are
            unreadable: the message names them, and everything else is written.
    """
    plan = shards_of(found, images_per_shard)
    source = _source(found, images_per_shard) | {"in_strips": in_strips}
    if in_strips:
        strips.check_program()
    manifest = _manifest(target)
    if manifest is not None and manifest["finished"] and not _leftovers(target, plan):  # perhaps on a read-only disk
        _same(manifest, source, found, target, plan)
        progress(plan_size(plan))
        return manifest
    try:
        target.mkdir(parents=True, exist_ok=True)
        with durable.only_writer(target, "the store", "wait until it ends, or choose another folder"):
            manifest = _manifest(target) or _begin(found, source, target)
            _same(manifest, source, found, target, plan)
            if manifest["finished"]:
                progress(plan_size(plan))
            else:
                _finish(found, plan, manifest, target, processes, progress)
            for rest in _leftovers(target, plan):
                rest.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; mend that, or choose another folder"
        ) from error
    return manifest


def plan_size(plan: list[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in plan)


def _finish(
    found: Found, plan: list[Shard], manifest: dict[str, Any], target: Path, processes: int, progress: Progress
) -> None:
    """Write the missing files, then the lists of files, and complete the manifest."""
    for folder in FOLDERS.values():
        (target / folder).mkdir(exist_ok=True)
    done = [written for shard in plan if (written := noted(target, shard)) is not None]
    missing = [shard for shard in plan if shard.file not in {d.file for d in done if d.split == shard.split}]
    for rest in _leftovers(target, missing):  # left by a killed start
        rest.unlink()
    progress(plan_size(done))
    if missing:
        _room(found, missing, target)
    unreadable: list[str] = []
    tasks = [(target, shard) for shard in missing]
    in_strips = manifest["source"]["in_strips"]
    for written, bad in in_processes(write, tasks, found, processes, progress, in_strips):
        unreadable += bad
        if not bad:
            done.append(written)
    if unreadable:
        raise UserError(_complaint(unreadable, "get them again, and run the same command to write what is missing"))
    for split, folder in FOLDERS.items():
        parts = sorted((s for s in done if s.split == split), key=lambda s: s.number)
        _describe(target / folder, folder, found, parts, manifest["source"]["labels"])
        rows = [{key: value for key, value in asdict(part).items() if key not in ("split", "number")} for part in parts]
        labels = zlib.crc32(np.asarray(found.splits[split].labels, dtype=np.int64).tobytes())
        manifest["splits"][folder] = {"images": parts[-1].stop, "labels_crc32": labels, "shards": rows}
    manifest["finished"] = True
    durable.write_text(target / arrow.STORE, json.dumps(manifest, indent=1))


def check(target: Path, processes: int, progress: Progress) -> dict[str, Any]:
    """Read a whole store again, verify its files and decode every image; return its manifest.

    Raises:
        UserError: something differs from what was written; the message lists it.
    """
    if not (target / arrow.STORE).exists():
        raise UserError(f"{target} is no store: it has no {arrow.STORE}")
    found = find(target)
    manifest = arrow.read_json(target / arrow.STORE)
    tasks = []
    for split, folder in FOLDERS.items():
        entry = manifest["splits"][folder]
        labels = found.splits[split].labels
        if len(labels) != entry["images"] or len(np.unique(labels)) > len(found.classes):
            raise UserError(f"{target / folder} has {len(labels):,} images where {entry['images']:,} were written")
        tasks += [(target, Shard(split, i, **shard)) for i, shard in enumerate(entry["shards"])]
    bad = [line for _, lines in in_processes(read_again, tasks, found, processes, progress) for line in lines]
    if bad:
        raise UserError(_complaint(bad, "prepare the store again from its source"))
    return manifest


def _source(found: Found, images_per_shard: int) -> dict[str, Any]:
    """Fingerprints of the images that a store is made of."""
    images, labels = hashlib.sha256(), hashlib.sha256()
    for files in found.splits.values():
        labels.update(np.asarray(files.labels, dtype=np.int64).tobytes())
        images.update("\n".join(str(stem) for stem in stems(files.names).to_pylist()).encode())
    return {
        "images_per_file": images_per_shard,
        "classes": hashlib.sha256("\n".join(found.classes).encode()).hexdigest(),
        "labels": labels.hexdigest(),
        "images": images.hexdigest(),
    }


def _manifest(target: Path) -> dict[str, Any] | None:
    """The contents of store.json; None if there is no store yet.

    Raises:
        UserError: store.json is damaged, or the folder is something else.
    """
    path = target / arrow.STORE
    if path.exists():
        found = arrow.read_json(path)
        with reading(path, "the list of a store that can go on", "choose another folder, or delete this one"):
            for entry in ("labels", "classes", "images", "images_per_file"):
                found["finished"], found["splits"], found["source"][entry]  # raises what is missing
        found["source"].setdefault("in_strips", False)  # a store from before there were strips
        return found
    try:
        others = sorted(target.iterdir()) if target.exists() else []
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another folder") from error
    if any(not (other.name == durable.LOCK or other.suffix == ".part") for other in others):
        raise UserError(f"{target} is not empty and not a store: choose another folder")
    return None


def _begin(found: Found, source: dict[str, Any], target: Path) -> dict[str, Any]:
    manifest = {
        "format": 1, "finished": False, "made_of": found.kind, "source": source, "classes": len(found.classes),
        "in_order": found.random_access, "splits": {},
    }  # fmt: skip
    durable.write_text(target / arrow.STORE, json.dumps(manifest, indent=1))
    return manifest


def _same(manifest: dict[str, Any], source: dict[str, Any], found: Found, target: Path, plan: list[Shard]) -> None:
    """Check that the store, finished or not, is made of the same images, in any kind of storage.

    Raises:
        UserError: it is not; the message says what differs.
    """
    begun, other = manifest["source"], "choose another folder"
    made_of = f"it is made of {manifest.get('made_of', 'other files')}, these are {found.kind}"
    if begun["labels"] != source["labels"]:
        raise UserError(f"{target} is the store of other images, or in another order ({made_of}): {other}")
    if begun["classes"] != source["classes"]:
        raise UserError(f"{target} is a store whose classes have other names ({made_of}): {other}")
    if begun["images"] != source["images"]:
        raise UserError(f"{target} is the store of images with other names ({made_of}): {other}")
    if begun["images_per_file"] != source["images_per_file"]:
        raise UserError(f"{target} has {begun['images_per_file']:,} images a file: say --images-per-file "
                         f"{begun['images_per_file']}, or {other}")  # fmt: skip
    if begun["in_strips"] != source["in_strips"]:
        raise UserError(f"{target} is a store {'in' if begun['in_strips'] else 'without'} strips: "
                         f"{'say' if begun['in_strips'] else 'leave out'} --strips, or {other}")  # fmt: skip
    if not found.random_access:
        return
    for shard in plan:  # equal names may have different images: compare one image of each existing file
        path = target / FOLDERS[shard.split] / shard.file
        if manifest["finished"] or noted(target, shard) is not None:
            kept = arrow.ArrowFiles([path], in_order=True)
            files = found.splits[shard.split]
            try:
                differs = _differs(kept.read(0), files.read(shard.start), begun["in_strips"])
            except (OSError, UnreadableImage):  # an unreadable image of the source is reported when it is needed
                continue
            if differs:
                raise UserError(f"{target} has another image than {files.name(shard.start)} under its name: {other}")


def _differs(kept: bytes, given: bytes, in_strips: bool) -> bool:
    """Whether a kept image is another one; in strips by its pixels, since programs write other bytes of the same."""
    return kept != given and not (in_strips and np.array_equal(decode(kept), decode(given)))


def _leftovers(target: Path, plan: list[Shard]) -> list[Path]:
    """Temporary files, and the notes of a plan's files."""
    places = [target, *(target / folder for folder in FOLDERS.values())]
    notes = [note for shard in plan if (note := note_of(target, shard)).exists()]
    return [part for place in places for part in place.glob("*.part")] + notes


def _room(found: Found, shards: list[Shard], target: Path) -> None:
    """Check that the disk has enough space, estimated from a few images of every missing file."""
    needed = 0.0
    for shard in shards:
        places = np.linspace(shard.start, shard.stop - 1, 4 if found.random_access else 1).astype(int)
        sizes = []
        for place in places:
            try:
                sizes.append(len(found.splits[shard.split].read(int(place))))
            except OSError:  # reported when it is written
                continue
        needed += float(np.mean(sizes or [0])) * (shard.stop - shard.start)
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(f"{target} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


def _describe(folder: Path, name: str, found: Found, shards: list[Shard], fingerprint: str) -> None:
    """Write the files that `datasets.load_from_disk` needs."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards], "_fingerprint": fingerprint[:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": name,
    }  # fmt: skip
    durable.write_text(folder / "dataset_info.json", json.dumps({"features": features_of(found)}, indent=1))
    durable.write_text(folder / "state.json", json.dumps(state, indent=1))
    durable.write_text(folder.parent / "dataset_dict.json", json.dumps({"splits": list(FOLDERS.values())}))


def _complaint(lines: list[str], cure: str) -> str:
    shown = "\n  ".join(lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return f"{len(lines)} of the images cannot be read; {cure}:\n  {shown}{more}"
