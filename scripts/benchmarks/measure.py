"""Interleaved timing: each round measures everything in turn, so a busy machine changes rounds but not ratios."""

import os
import platform
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from batch_renorm.running.capacity import keep_freed_memory
from batch_renorm.running.folder import commit

ROOT = Path(__file__).resolve().parent.parent.parent
BATCHNORM = "nn.BatchNorm2d"


def clock(run: Callable[[], object], args: Namespace, repeats: int = 1) -> float:
    """Seconds of a run; on a single CPU thread the process's own time, without the work of others."""
    on_cpu = args.device == "cpu"
    now = time.process_time if on_cpu and args.threads == 1 else time.perf_counter
    if not on_cpu:
        torch.accelerator.synchronize()
    start = now()
    for _ in range(repeats):
        run()
    if not on_cpu:
        torch.accelerator.synchronize()
    return (now() - start) / repeats


def interleaved(runs: Mapping[str, Callable[[], object]], args: Namespace, repeats: int = 1) -> dict[str, list[float]]:
    """Seconds of each run in each of `args.rounds` rounds, after a warm-up round that does not count.

    The order is reversed from round to round, because what runs later in a round may run on a slower machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            taken = clock(runs[name], args, repeats)
            if number:
                seconds[name].append(taken)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """The median, and half the distance between the quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "spread": (high - low) / 2}


def ratios(seconds: dict[str, list[float]], base: str = BATCHNORM) -> dict[str, dict[str, float]]:
    """The ratios of every run to `base` in the same round."""
    return {
        name: spread([value / other for value, other in zip(values, seconds[base], strict=True)])
        for name, values in seconds.items()
    }


def machine(args: Namespace) -> dict:
    """The machine and versions that the numbers depend on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": device_name(args.device),
        "threads": args.threads,
        "freed_memory_kept": keep_freed_memory(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "timm")},
    }


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.processor() or platform.machine()


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    sys.stdout.flush()


def cell(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} +-{ratio['spread']:.2f}"
