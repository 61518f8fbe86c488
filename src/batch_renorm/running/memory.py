"""workers_per_pass=auto: the most workers whose forward and backward fit in the device's memory.

The search runs once, on copies, so it changes neither the weights nor a random stream. A resumed run on the
same hardware takes the number from run.json.
"""

import copy
import gc
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batch_renorm.data.workers import split_evenly
from batch_renorm.errors import UserError
from batch_renorm.norm import training_normalization
from batch_renorm.norm.layers import has_layers
from batch_renorm.running.build import Run
from batch_renorm.running.launch import World, gather

SPARE = 0.9  # fraction of a GPU's memory that may be used: the rest is for fragments, DDP and the loaders
CPU_SHARE = 0.5  # fraction of the free memory that may be used: other programs come and go


def workers_per_pass(run: Run, world: World, device: torch.device, record: dict[str, Any]) -> dict[str, Any]:
    """The entry for run.json: how many workers a pass holds and why, the same on every rank.

    Raises:
        UserError: not even one worker's minibatch fits.
    """
    share = len(split_evenly(range(run.size.workers), world.ranks)[0])
    asked = run.machine.workers_per_pass
    if asked != "auto":
        return {"workers_per_pass": min(asked or share, share), "because": "trainer.workers_per_pass"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    number = "bf16" if run.training.bf16 else "float32"
    because = f"the most that fits {name}, {world.ranks} rank{'s' * (world.ranks > 1)}, {number}"
    known = record.get("memory", {})
    if known.get("because") == because:
        return known
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        found = on_cuda(run, device, share) if device.type == "cuda" else on_cpu(run, world, share)
    found = min(gather(found, world))
    if not found:
        raise UserError(
            f"one worker's minibatch ({run.minibatch.size} images) does not fit the memory of {name}: "
            "use a device with more"
        )
    return {"workers_per_pass": found, "because": because}


def candidates(share: int) -> list[int]:
    """Sizes of the largest pass for 1, 2, 3, ... passes: 50 -> 50, 25, 17, 13, 10, 9, ..., 1."""
    return sorted({math.ceil(share / passes) for passes in range(1, share + 1)}, reverse=True)


def on_cuda(run: Run, device: torch.device, share: int) -> int:
    """The largest candidate whose forward and backward leave some memory free; 0 if there is none."""
    return next((workers for workers in candidates(share) if fits(partial(a_pass, run, workers), device)), 0)


def fits(attempt: Callable[[torch.device], None], device: torch.device) -> bool:
    """Whether `attempt` runs and leaves some of the GPU's memory free; frees what it allocated."""
    torch.cuda.reset_peak_memory_stats(device)
    try:
        attempt(device)
        torch.cuda.synchronize(device)
        most = torch.cuda.max_memory_reserved(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        # an exception's frames may hold the attempt's tensors; collect reference cycles now, not later
        gc.collect()
        torch.cuda.empty_cache()
    return most <= SPARE * torch.cuda.get_device_properties(device).total_memory


def a_pass(run: Run, workers: int, device: torch.device) -> None:
    """Forward and backward for `workers` workers, on a copy of the model."""
    model = copy.deepcopy(run.training.model).to(device).train()
    images = sample(run, workers * run.minibatch.size, device)
    # stands for the optimiser's two copies of the weights and DDP's one
    later = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    run.training.losses(model, images, labels).sum().backward()
    del later


@torch.no_grad()
def a_batch(run: Run, images: int, device: torch.device) -> None:
    """Evaluate a batch, with memory allocated for the training's model, gradients and optimiser."""
    minibatch = run.minibatch.size
    model = copy.deepcopy(run.training.model).to(device).eval()
    later = [torch.empty_like(p) for p in model.parameters() for _ in range(5)]
    # as in training, which takes more memory than with mu and sigma
    with training_normalization(model) if has_layers(model) else nullcontext():
        model(sample(run, max(1, images // minibatch) * minibatch, device))
    del later


def evaluation_batch(run: Run, world: World, device: torch.device) -> int:
    """Images per evaluation batch, the same on every rank: the configured number, halved until it fits in float32.

    It changes no metric: images are normalised separately, or in minibatches that are never cut.

    Raises:
        UserError: not even a 64th of the configured number fits.
    """
    size = run.evaluation.batch_size
    if device.type != "cuda":
        return size
    sizes = [size // 2**halvings for halvings in range(7) if size // 2**halvings]
    with torch.random.fork_rng([device]):
        found = next((images for images in sizes if fits(partial(a_batch, run, images), device)), 0)
    found = min(gather(found, world))
    if not found:
        raise UserError(
            f"evaluation.batch_size={size} does not fit the device's memory, nor does {sizes[-1]}: lower it"
        )
    return found


def on_cpu(run: Run, world: World, share: int) -> int:
    """As many workers as half the free memory holds; without memory the system kills the process.

    Counts the tensors that one worker's forward keeps for its backward, and doubles them: the gradients
    take at most as much again.
    """
    free = free_memory()
    if free is None:
        return share
    model, kept = copy.deepcopy(run.training.model).train(), {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = sample(run, run.minibatch.size, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = run.training.losses(model, images, torch.zeros(len(images), dtype=torch.int64))
    del losses
    most = int(CPU_SHARE * free / world.devices / (2 * sum(kept.values())))
    return next((workers for workers in candidates(share) if workers <= most), 1)  # 1 may still work, slowly


def sample(run: Run, images: int, device: torch.device) -> Tensor:
    """Random images."""
    shape = (images, run.source.channels, run.source.size, run.source.size)
    return torch.rand(shape, device=device).contiguous(memory_format=run.training.memory_format)


def free_memory() -> int | None:
    """Bytes of free memory, from /proc/meminfo and the control group; None if unknown."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # "max" means no limit
        return free
