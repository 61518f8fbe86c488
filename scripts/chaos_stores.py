"""The part of chaos.py for stores: kill scripts/prepare_imagenet.py repeatedly and check the result."""

import io
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
CLASSES, IMAGES_PER_FILE = 4, 8
SHORT = 0.6  # longest wait before a kill, seconds; about the time that writing all images takes


def torment_store(place: Path, kills: int, images: int, chance: random.Random) -> dict[str, Any]:
    """Prepare one store undisturbed and others with `kills` kills in all, restarted at once; return the differences.

    SIGKILL and SIGTERM alternate and go to the main process alone: the others must end with it.
    """
    write_images(place / "source", images)
    prepare(place / "source", place / "whole").communicate()
    expected, kinds = contents(place / "whole"), (signal.SIGKILL, signal.SIGTERM)
    where: Counter[str] = Counter()
    result: dict[str, Any] = {"images": images, "files": len(expected), "starts": 0, "stores": 0, "kills": 0}
    differing, statuses = 0, Counter[int]()
    while True:
        store = place / f"store{result['stores']}"
        process = prepare(place / "source", store)
        result["starts"] += 1
        number = kinds[result["kills"] % 2]
        if result["kills"] < kills and strike(process, store, number, chance):
            result["kills"] += 1
            where[number.name] += 1
            statuses[process.returncode] += 1
            continue
        output = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"preparing did not go on after {result['kills']} kills:\n{output}")
        result["stores"] += 1
        found = contents(store)
        differing += sum(found.get(name) != expected.get(name) for name in found.keys() | expected.keys())
        if result["kills"] == kills:
            break
    result |= {"killed by": dict(where), "statuses": {str(key): value for key, value in statuses.items()}}
    result |= {
        "files that differ": differing,
        "clean": not differing and set(statuses) <= {-signal.SIGKILL, -signal.SIGTERM, 75},
    }
    return result


def prepare(source: Path, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/prepare_imagenet.py", str(source), str(store), "--any-counts"]
    command += ["--processes=2", f"--images-per-file={IMAGES_PER_FILE}"]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def strike(process: subprocess.Popen[str], store: Path, number: signal.Signals, chance: random.Random) -> bool:
    """Kill at a random moment after the store is locked; False if the process ended earlier."""
    while process.poll() is None and not (store / ".lock").exists():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, SHORT))
    if process.poll() is not None:
        return False
    process.send_signal(number)
    process.wait()
    return process.returncode != 0


def write_images(root: Path, images: int) -> None:
    """Write random pictures in place of photographs, each under many names."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(20):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    for number in range(images):
        path = root / ("val" if number % 5 == 0 else "train") / f"n{number % CLASSES:08d}" / f"{number:06d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % len(pictures)])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, including hidden files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
