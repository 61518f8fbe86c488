"""Kill a small run, and the preparation of a store, again and again: `python scripts/chaos.py`.

A run is killed by SIGKILL to its whole process group: while it starts, between steps, during an evaluation or
while it writes a checkpoint; with several ranks also by SIGKILL to a single rank. Then the same command runs again.
The report counts lost and doubled rows of curve.csv, and gives the largest difference of any number in the last
checkpoint (weights, mu, sigma, their average, optimiser) from an undisturbed run; it must be zero.
A store's preparation is killed by SIGKILL and SIGTERM in turn and restarted at once; the report counts files that
differ in any byte from an undisturbed store.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from chaos_stores import torment_store

from batch_renorm.records.curve import BY_THE_CLOCK, read_rows
from batch_renorm.running.checkpoints import checkpoints
from batch_renorm.running.cli import explained
from batch_renorm.running.folder import commit

ROOT = Path(__file__).parents[1]
SMALL = [
    "logger=offline", "trainer=cpu", "trainer.log_every=1", "data.labels=40", "data.val_images=4", "size.workers=3",
    "size.train_sample=80",
]  # fmt: skip
FAULTS = "rows lost", "rows doubled", "rows changed", "largest difference"
PATIENCE = 3600.0  # seconds for a process to get anywhere, on a machine with much other work


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, about in (
        ("kills", 12, "of the run, per number of ranks"),
        ("steps", 60, "of the run"),
        ("every", 5, "steps between its evaluations and checkpoints"),
        ("stores", 20, "kills of scripts/prepare_imagenet.py"),
        ("images", 600, "in that store"),
        ("seed", 0, "of the moments; they also depend on the machine's mood"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{about} (default: {default})")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks to try (default: 1,2)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="for the runs' folders, <ranks>/killed and <ranks>/whole"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for chaos.json and README.md (default: printed only)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = vars(parse(arguments))
    chance, results, stores = random.Random(options["seed"]), [], []
    counts = options["ranks"].split(",") if options["kills"] else []
    for ranks in map(int, counts):
        with tempfile.TemporaryDirectory(prefix="chaos") as place:
            runs = options["keep"] / str(ranks) if options["keep"] else Path(place)
            results.append(torment(runs, ranks, options["kills"], options, chance))
            print(json.dumps(results[-1]), flush=True)
    if options["stores"]:
        with tempfile.TemporaryDirectory(prefix="chaos") as place:
            stores.append(torment_store(Path(place), options["stores"], options["images"], chance))
            print(json.dumps(stores[-1]), flush=True)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python scripts/chaos.py", *arguments]),
        "commit": commit(),
        "device": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "results": results,
        "stores": stores,
    }
    if options["out"]:
        out = options["out"]
        out.mkdir(parents=True, exist_ok=True)
        (out / "chaos.json").write_text(json.dumps(report, indent=2) + "\n")
        (out / "README.md").write_text(page(report))
    print(page(report))
    return 0 if all(result["clean"] for result in results + stores) else 1


def torment(place: Path, ranks: int, kills: int, options: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Train one run undisturbed and one with `kills` kills; return the differences."""
    steps, every = options["steps"], options["every"]
    overrides = [*SMALL, f"size.steps={steps}", f"size.evaluate_every={every}", f"trainer.devices={ranks}"]
    whole, killed = place / "whole", place / "killed"
    start(whole, overrides).communicate(timeout=PATIENCE)
    where: Counter[str] = Counter()
    kinds = ["checkpoint", "evaluation", "step", "start"] + ["one rank"] * (ranks > 1)
    begun = 0
    while True:
        process = start(killed, overrides)
        begun += 1
        # each kind in turn, so that a short run has every kind
        kind = kinds[sum(where.values()) % len(kinds)]
        if sum(where.values()) < kills and strike(process, killed, kind, every, chance):
            where[kind] += 1
            continue
        output = process.communicate(timeout=PATIENCE)[0]
        if process.returncode or "going on without W&B" in output:
            raise RuntimeError(f"the run or W&B did not go on after {sum(where.values())} kills:\n{output}")
        break
    result = {"ranks": ranks, "steps": steps, "starts": begun, "kills": sum(where.values()), "killed in": dict(where)}
    result |= compare(whole, killed)
    result["clean"] = not any(result[name] for name in FAULTS)
    return result


def start(folder: Path, overrides: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", *overrides, f"folder={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def strike(process: subprocess.Popen[str], folder: Path, kind: str, every: int, chance: random.Random) -> bool:
    """Kill at a random moment of the given kind; False if the process ended earlier."""
    reached, ahead = last_step(folder), chance.randint(1, every + 2)
    delay = chance.uniform(0, 4)
    began = time.monotonic()
    for _ in watching(process):
        now = last_step(folder)
        if kind == "start" and time.monotonic() - began > delay:
            break
        if kind in ("step", "one rank") and now >= reached + ahead:
            time.sleep(chance.uniform(0, 0.05))
            break
        if kind == "evaluation" and now > reached and now % every == 0 and not evaluated(folder, now):
            time.sleep(chance.uniform(0, 0.02))
            break
        if kind == "checkpoint" and any((folder / "checkpoints").glob("*.part")):
            break
    if process.poll() is not None:
        return False
    if kind == "one rank":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [int(pid) for pid in children if b"--multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(chance.choice([process.pid, *ranks]), signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)  # if one rank was killed, the others must end by themselves
    return True


def watching(process: subprocess.Popen[str]) -> Iterator[None]:
    """Yield a thousand times a second while the process lives."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"nothing happened in {PATIENCE:.0f} s")
        yield
        time.sleep(0.001)


def last_step(folder: Path) -> int:
    """The step of the curve's last whole row; cheap enough to call all the time."""
    try:
        with (folder / "curve.csv").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 400))
            lines = file.read().split(b"\n")[:-1]
        return int(lines[-1].split(b",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def evaluated(folder: Path, step: int) -> bool:
    return any(row[:2] == (step, "val_top1") for row in read_rows(folder / "curve.csv")[-60:])


def compare(whole: Path, killed: Path) -> dict[str, Any]:
    """Rows lost, doubled or changed, and the largest difference of the last checkpoints."""
    left, right = (rows(folder) for folder in (whole, killed))
    result: dict[str, Any] = {
        "rows": len(left),
        "rows lost": len(left.keys() - right.keys()),
        "rows doubled": doubled([row[:2] for row in read_rows(killed / "curve.csv")]),
        "rows changed": sum(left[key] != right[key] for key in left.keys() & right.keys()),
    }
    numbers = [dict(tensors(torch.load(checkpoints(folder)[0], weights_only=True))) for folder in (whole, killed)]
    if numbers[0].keys() != numbers[1].keys():
        raise RuntimeError("the last checkpoints do not hold the same things")
    result["largest difference"] = max((numbers[0][name] - numbers[1][name]).abs().max().item() for name in numbers[0])
    return result


def rows(folder: Path) -> dict[tuple[int, str], float]:
    """(step, metric) -> value of a curve, without measured times."""
    return {row[:2]: row[2] for row in read_rows(folder / "curve.csv") if not row[1].startswith(BY_THE_CLOCK)}


def doubled(keys: list[Any]) -> int:
    return len(keys) - len(set(keys))


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every non-empty tensor of weights, averages and optimiser in a checkpoint, by its path."""
    if isinstance(value, torch.Tensor):
        if value.numel():
            yield name, value.double()
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{name}.{key}")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# Chaos",
        "",
        f"`{report['command']}`, {report['date']}, {report['device']}, torch {report['torch']}, "
        f"commit {(report['commit'] or 'unknown')[:8]}.",
        "",
    ]
    runs, stores = report["results"], report["stores"]
    if runs:
        lines += ["A small run, killed with SIGKILL and started again until done, beside one that nobody killed.", ""]
        lines += rows_of(runs, [f"{one['ranks']} rank{'s' * (one['ranks'] > 1)}" for one in runs])
    if stores:
        lines += ["Stores of small images, killed while they were made and started again at once, beside one that "
                  "nobody killed.", ""]  # fmt: skip
        lines += rows_of(stores, ["stores"])
    verdict = "Nothing" if all(result["clean"] for result in runs + stores) else "SOMETHING"
    return "\n".join([*lines, f"{verdict} was lost, doubled or changed.", ""])


def rows_of(results: list[dict[str, Any]], heads: list[str]) -> list[str]:
    """Results side by side as a table."""
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for name in results[0]:
        if name not in ("ranks", "clean"):
            cells = [result[name] for result in results]
            texts = [", ".join(f"{k} {v}" for k, v in c.items()) if isinstance(c, dict) else f"{c:,}" for c in cells]
            lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    with explained():
        raise SystemExit(main(sys.argv[1:]))
