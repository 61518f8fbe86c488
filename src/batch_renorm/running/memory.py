"""workers_per_pass: auto, the most workers in one forward and backward that the device's memory holds.

Found once, on copies, so that neither the weights nor a random stream knows of it; a resumed run on the
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
from batch_renorm.norm import training_normalization
from batch_renorm.norm.layers import has_layers
from batch_renorm.running.build import Run
from batch_renorm.running.launch import World, gather

SPARE = 0.9  # of a GPU's memory: what is left is for fragments, and for what DDP and the loaders keep
CPU_SHARE = 0.5  # of the memory that is free: other programs come and go


def workers_per_pass(run: Run, world: World, device: torch.device, record: dict[str, Any]) -> dict[str, Any]:
    """How many workers a pass holds and how that was found, the same on every rank; as run.json states it.

    Raises:
        ValueError: not even one worker's minibatch fits.
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
        raise ValueError(
            f"one worker's minibatch ({run.config['minibatch']['size']} images) does not fit the memory of {name}: "
            "use a device with more"
        )
    return {"workers_per_pass": found, "because": because}


def candidates(share: int) -> list[int]:
    """Sizes of the largest pass for 1, 2, 3, ... passes: 50 -> 50, 25, 17, 13, 10, 9, ..., 1."""
    return sorted({math.ceil(share / passes) for passes in range(1, share + 1)}, reverse=True)


def on_cuda(run: Run, device: torch.device, share: int) -> int:
    """The largest candidate whose forward and backward leave some memory free; 0 if none does."""
    return next((workers for workers in candidates(share) if fits(partial(a_pass, run, workers), device)), 0)


def fits(attempt: Callable[[torch.device], None], device: torch.device) -> bool:
    """Whether something runs and leaves some of a GPU's memory free; what it allocated is gone afterwards."""
    torch.cuda.reset_peak_memory_stats(device)
    try:
        attempt(device)
        torch.cuda.synchronize(device)
        most = torch.cuda.max_memory_reserved(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        # an exception's frames held the tensors of the attempt; what stands in a circle goes now, not some time later
        gc.collect()
        torch.cuda.empty_cache()
    return most <= SPARE * torch.cuda.get_device_properties(device).total_memory


def a_pass(run: Run, workers: int, device: torch.device) -> None:
    """Forward and backward of so many workers, on a copy of the model."""
    model = copy.deepcopy(run.training.model).to(device).train()
    images = sample(run, workers * run.config["minibatch"]["size"], device)
    # the optimiser's two and DDP's one copy of the weights, which the copy here does not have
    later = [torch.empty_like(p) for p in model.parameters() for _ in range(3)]
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    run.training.losses(model, images, labels).sum().backward()
    del later


@torch.no_grad()
def a_batch(run: Run, images: int, device: torch.device) -> None:
    """What an evaluation does with a batch, beside the training's model, gradients and optimiser."""
    minibatch = run.config["minibatch"]["size"]
    model = copy.deepcopy(run.training.model).to(device).eval()
    later = [torch.empty_like(p) for p in model.parameters() for _ in range(5)]
    # as its minibatches are normalised: more than with mu and sigma
    with training_normalization(model) if has_layers(model) else nullcontext():
        model(sample(run, max(1, images // minibatch) * minibatch, device))
    del later


def evaluation_batch(run: Run, world: World, device: torch.device) -> int:
    """Images of a batch of an evaluation, in float32, the same on every rank: as configured, or what memory holds.

    It changes no metric: images are normalised each for itself, or in minibatches that are never cut.

    Raises:
        ValueError: not even a 64th of what is configured fits.
    """
    size = run.evaluation.batch_size
    if device.type != "cuda":
        return size
    sizes = [size // 2**halvings for halvings in range(7) if size // 2**halvings]
    with torch.random.fork_rng([device]):
        found = next((images for images in sizes if fits(partial(a_batch, run, images), device)), 0)
    found = min(gather(found, world))
    if not found:
        raise ValueError(
            f"evaluation.batch_size={size} does not fit the device's memory, nor does {sizes[-1]}: lower it"
        )
    return found


def on_cpu(run: Run, world: World, share: int) -> int:
    """As many workers as half the free memory holds; without memory the system kills the process.

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

    images = sample(run, run.config["minibatch"]["size"], torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = run.training.losses(model, images, torch.zeros(len(images), dtype=torch.int64))
    del losses
    most = int(CPU_SHARE * free / world.devices / (2 * sum(kept.values())))
    return next((workers for workers in candidates(share) if workers <= most), 1)  # which may still do, slowly


def sample(run: Run, images: int, device: torch.device) -> Tensor:
    """Images of no particular content."""
    shape = (images, run.source.channels, run.source.size, run.source.size)
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
