"""Reading a run's W&B file from disk: a LevelDB log of wandb's protobuf messages."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 15
HEADER = 7  # bytes of the file's header, and of a record part's header: checksum, length, kind
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, without the last one of a killed run if it is incomplete."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), HEADER, b""
    if content[:4] != b":W&B":
        raise ValueError(f"{path} is not a W&B file")
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # too few bytes for a header at the end of a block
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if at > len(content):
            return
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The logged rows (step, metric -> value), in the file's order."""
    rows = []
    for record in records(path):
        if record.HasField("history"):
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            step = record.history.step.num if record.history.HasField("step") else items["_step"]
            rows.append((step, {name: value for name, value in items.items() if not name.startswith("_")}))
    return rows


def offline_files(folder: Path) -> list[Path]:
    """The offline files of a run folder that `wandb sync` would upload."""
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
