"""workers_per_pass: auto, the most workers in one forward and backward that the device's memory holds.

Found once, on copies, so that neither the weights nor a random stream knows of it; a resumed run on the
same hardware takes the number from run.json.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batch_renorm.data.workers import split_evenly
from batch_renorm.training.build import Run
from batch_renorm.training.launch import Place

SPARE = 0.9  # of a GPU's memory: what is left is for fragments, and for what DDP and the loaders keep
CPU_SHARE = 0.5  # of the memory that is free: other programs come and go


def workers_per_pass(run: Run, place: Place, device: torch.device, record: dict[str, Any]) -> dict[str, Any]:
    """How many workers a pass holds and how that was found, the same on every rank; as run.json states it.

    Raises:
        ValueError: not even one worker's minibatch fits.
    """
    share = len(split_evenly(range(run.size.workers), place.ranks)[0])
    asked = run.machine.workers_per_pass
    if asked != "auto":
        return {"workers_per_pass": min(asked or share, share), "because": "trainer.workers_per_pass"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    number = "bf16" if run.training.bf16 else "float32"
    because = f"the most that fits {name}, {place.ranks} rank{'s' * (place.ranks > 1)}, {number}"
    known = record.get("memory", {})
    if known.get("because") == because:
        return known
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        fits = on_cuda(run, device, share) if device.type == "cuda" else on_cpu(run, place, share)
    if place.ranks > 1:
        least = torch.tensor(fits, device=device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        fits = int(least)
    if not fits:
        raise ValueError(
            f"one worker's minibatch ({run.config['minibatch']['size']} images) does not fit the memory of {name}: "
            "use a device with more"
        )
    return {"workers_per_pass": fits, "because": because}


def candidates(share: int) -> list[int]:
    """Sizes of the largest pass for 1, 2, 3, ... passes: 50 -> 50, 25, 17, 13, 10, 9, ..., 1."""
    return sorted({math.ceil(share / passes) for passes in range(1, share + 1)}, reverse=True)


def on_cuda(run: Run, device: torch.device, share: int) -> int:
    """The largest candidate whose forward and backward leave some memory free; 0 if none does."""
    for workers in candidates(share):
        torch.cuda.reset_peak_memory_stats(device)
        model = images = None
        try:
            model = copy.deepcopy(run.training.model).to(device).train()
            images = sample(run, workers, device)
            # the optimiser's two and DDP's one copy of the weights, which the copy here does not have
            later = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
            labels = torch.zeros(len(images), dtype=torch.int64, device=device)
            run.training.losses(model, images, labels).sum().backward()
            torch.cuda.synchronize(device)
            del later
        except torch.OutOfMemoryError:
            continue
        else:
            if torch.cuda.max_memory_reserved(device) <= SPARE * torch.cuda.get_device_properties(device).total_memory:
                return workers
        finally:
            del model, images
            torch.cuda.empty_cache()
    return 0


def on_cpu(run: Run, place: Place, share: int) -> int:
    """As many workers as half the free memory holds; a CPU that runs out is not told but killed.

    What one worker's forward keeps for its backward is counted, twice: the gradients on their way back take
    as much again at most.
    """
    free = free_memory()
    if free is None:
        return share
    model, kept = copy.deepcopy(run.training.model).train(), {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = sample(run, 1, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = run.training.losses(model, images, torch.zeros(len(images), dtype=torch.int64))
    del losses
    fits = int(CPU_SHARE * free / place.devices / (2 * sum(kept.values())))
    return next((workers for workers in candidates(share) if workers <= fits), 1)  # which may still do, slowly


def sample(run: Run, workers: int, device: torch.device) -> Tensor:
    """As many images as `workers` bring, of no particular content."""
    shape = (workers * run.config["minibatch"]["size"], run.source.channels, run.source.size, run.source.size)
    return torch.rand(shape, device=device).contiguous(memory_format=run.training.memory_format)


def free_memory() -> int | None:
    """Bytes that a new program may take, by /proc/meminfo and the control group; None where neither is."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit is the word "max"
        return free
