"""What a machine holds: workers in a pass, images in an evaluation's batch, cores of a rank.

`trainer.workers_per_pass=auto` on a GPU is a try, and half of it after "out of memory"; everything else is a formula.
"""

import copy
import ctypes
import gc
import os
from dataclasses import dataclass
from typing import Any

import torch

from batch_renorm.data.loaders import split_evenly
from batch_renorm.data.loading import Loading
from batch_renorm.errors import UserError
from batch_renorm.running.build import Run
from batch_renorm.running.ranks import World, gather

SPARE = 0.9  # fraction of a GPU's memory that may be used: the rest is for fragments, DDP and the loaders
PASS_ON_A_CPU = 8e9  # bytes that a rank's forward and backward may take, unless one worker takes more
ACTIVATIONS = 2000  # bytes that a forward keeps and a backward adds, for each number of an image


@dataclass(frozen=True)
class Memory:
    """Workers of the largest pass, and why so many; images of an evaluation's batch. The same on every rank."""

    workers_per_pass: int
    because: str
    evaluation_batch: int


@dataclass(frozen=True)
class Execution:
    """How a run computes, for its opening table and run.json."""

    arithmetic: dict[str, Any]
    memory: Memory
    loading: Loading


def memory_of(run: Run, world: World, device: torch.device, record: dict[str, Any]) -> Memory:
    """The sizes that fit the device; a resumed run on the same hardware takes the pass from its `record` (run.json).

    The evaluation's batch changes no metric. On a GPU it is at most a pass, which needs more memory.
    """
    share = len(split_evenly(range(run.size.workers), world.ranks)[0])
    asked, known, gpu = run.machine.workers_per_pass, record.get("memory", {}), device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else device.type
    number = "bf16" if run.training.bf16 else "float32"
    because = f"the most that fits {name}, {world.ranks} rank{'s' * (world.ranks > 1)}, {number}"
    if asked != "auto":
        workers, because = min(asked or share, share), "trainer.workers_per_pass"
    elif known.get("because") == because:
        workers = known["workers_per_pass"]
    elif gpu:
        workers = share
        while workers and not fits(run, workers, device):
            workers //= 2
        workers = min(gather(workers, world))
    else:
        of_a_worker = ACTIVATIONS * run.minibatch.size * run.source.channels * run.source.size**2
        workers = min(share, max(1, int(PASS_ON_A_CPU // of_a_worker)))
    if not workers:
        raise UserError(f"one worker's minibatch ({run.minibatch.size} images) does not fit the memory of {name}")
    batch = run.evaluation.batch_size
    return Memory(workers, because, min(batch, workers * run.minibatch.size) if gpu else batch)


def fits(run: Run, workers: int, device: torch.device) -> bool:
    """Whether forward and backward for some workers leave some of the GPU's memory free; it changes nothing."""
    shape = (workers * run.minibatch.size, run.source.channels, run.source.size, run.source.size)
    try:
        model = copy.deepcopy(run.training.model).to(device).train()
        torch.cuda.reset_peak_memory_stats(device)
        # stands for the optimiser's two copies of the weights, DDP's one, and the inference model
        later = [torch.empty_like(p) for p in model.parameters() for _ in range(4)]
        with torch.random.fork_rng([device]):
            images = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
            run.training.losses(model, images, torch.zeros(shape[0], dtype=torch.int64, device=device)).sum().backward()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_reserved(device) <= SPARE * torch.cuda.get_device_properties(device).total_memory
    except torch.OutOfMemoryError:
        return False
    finally:
        model = later = images = None  # type: ignore[assignment]  # noqa: F841
        gc.collect()  # now, because an exception's frames may hold tensors
        torch.cuda.empty_cache()


def cores(world: World) -> float:
    """CPU cores of this rank. srun binds a rank to its own; torchrun's and plain python's ranks share the machine's."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    return mine if world.launcher == "srun" else mine / world.devices


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for its next tensors; return whether the C library (glibc) can do that.

    By default it returns large tensors to the system, and mapping their pages again takes up to half of a layer's time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; on Windows CDLL takes no None
        return False
    no_mapping, no_trimming = (-4, 0), (-1, 2**31 - 1)  # M_MMAP_MAX; M_TRIM_THRESHOLD, bytes
    return all(mallopt(*option) for option in (no_mapping, no_trimming))
