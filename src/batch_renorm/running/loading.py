"""loader_processes=auto: the number of loader processes, from a rank's cores and the shared memory."""

import os
from pathlib import Path
from typing import Any

import torch

from batch_renorm.running.build import Run
from batch_renorm.running.launch import World, gather
from batch_renorm.running.memory import free_memory
from batch_renorm.running.shared_memory import shared_memory_fits

MOST = 16
"""Most loader processes of a rank: each prepares some 500 images a second, and no GPU is known to need 8,000."""
KEPT_SHARE = 0.25  # fraction of the free memory for evaluation's images, for all ranks of the machine together


def loading(run: Run, world: World, device: torch.device, images: int) -> dict[str, Any]:
    """The entry for run.json: the number of loader processes of this rank, and why.

    Args:
        images: images of the largest pass, plus those that an evaluation requests from a process at once.
    """
    asked = run.machine.loader_processes
    if asked != "auto":
        return {"processes": asked, "because": "trainer.loader_processes"}
    if not run.source.needs_loader_processes:
        return {"processes": 0, "because": "the device makes the images"}
    have = cores(world)
    most = 1 if device.type == "cpu" else MOST  # on a CPU the network uses all cores
    least = 0 if device.type == "cpu" else 1
    wanted = min(most, max(least, int(have) - 1))
    fit = shared_memory_fits(run.source.image_bytes, images, world.devices)
    if fit is not None and fit < wanted:
        return {"processes": fit, "because": f"/dev/shm holds no more than {fit}: give it more (docker run --shm-size)"}
    return {"processes": wanted, "because": f"{have:.3g} cores of this rank"}


def cores(world: World) -> float:
    """CPU cores of this rank: the cores it may run on, each divided among the ranks that may use it.

    srun binds every rank to its own cores; torchrun and plain python let all ranks use all cores. A control group may
    limit the machine's ranks further.
    """
    mine = affinity()
    here = [theirs for node, theirs in gather((world.node, mine), world) if node == world.node]
    share = sum(1 / sum(core in theirs for theirs in here) for core in mine)
    limit = quota()
    return share if limit is None else min(share, limit / world.devices)


def affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS


def quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that the control group may use at once; None without a limit."""
    try:
        most, period = file.read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return None


def room_for_images(world: World) -> int | None:
    """Bytes of this rank's memory that evaluation's images may take; None if the free memory is unknown."""
    free = free_memory()
    return None if free is None else int(KEPT_SHARE * free / world.devices)
