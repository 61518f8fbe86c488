"""How a device computes: number formats, memory layout, compiler. Each run states its choice in run.json.

`auto` in configs/trainer is what suits the device when a run begins, and what it began with ever after,
so that a run that is resumed on other hardware keeps its rounding as far as the hardware can.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from batch_renorm.running.build import Machine, Run


@dataclass(frozen=True)
class Arithmetic:
    """Decided options; the fields are those of configs/trainer."""

    precision: Literal[32, "bf16"]
    channels_last: bool
    compile: bool | str
    """Or a mode of torch.compile."""
    tf32: bool
    deterministic: bool


def choose(machine: Machine, device: torch.device, began_with: dict[str, Any] | None) -> Arithmetic:
    """What a run computes with; `began_with` is what its run.json says.

    On GPUs with bfloat16 (compute capability 8.0 and up) the network's forward and backward run under
    autocast to it; mu, sigma, the loss, the weights and evaluation stay float32. A GPU without it (V100, T4) would
    compute it in software: there a run is float32, also one that began with bfloat16 elsewhere. Convolutions are laid
    out channels-last everywhere. Nothing is compiled unless asked for: nobody has measured it on a GPU here, and
    on a CPU its compilation outlasts a run of the embedded scale.
    """
    began_with = dict(began_with or {})
    if not has_bf16(device):
        name = torch.cuda.get_device_name(device)
        if machine.precision == "bf16":
            raise ValueError(f"trainer.precision=bf16, but {name} has no bfloat16: say 32, or auto")
        began_with.pop("precision", None)
    automatic = {
        "precision": "bf16" if device.type == "cuda" and has_bf16(device) else 32,
        "channels_last": True,
        "compile": False,
    }
    choice = {
        name: began_with.get(name, best) if getattr(machine, name) == "auto" else getattr(machine, name)
        for name, best in automatic.items()
    }
    return Arithmetic(**choice, tf32=machine.tf32, deterministic=machine.deterministic)


def has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def check_passes(arithmetic: Arithmetic, passes: int) -> None:
    """Raises ValueError where CUDA graphs would have to add up the gradients of several passes.

    Their gradients stand in memory that the next recorded pass writes to (pytorch/pytorch#169545).
    """
    if arithmetic.compile in ("reduce-overhead", "max-autotune") and passes > 1:
        raise ValueError(
            f"trainer.compile={arithmetic.compile} records CUDA graphs, which take one pass a step, and this run makes "
            f"{passes}: more ranks, trainer.workers_per_pass=null, or trainer.compile=true"
        )


def apply(arithmetic: Arithmetic, run: Run, device: torch.device) -> dict[str, Any]:
    """Set torch and the run up; returns what run.json states."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arithmetic.tf32
    # a tuned choice of convolution kernels may differ from start to start
    torch.backends.cudnn.benchmark = not arithmetic.deterministic
    if arithmetic.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(arithmetic.deterministic)
    training = run.training
    training.bf16 = arithmetic.precision == "bf16"
    training.memory_format = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
    training.model.to(memory_format=training.memory_format)
    if arithmetic.compile:  # in place: names in checkpoints, and the inference model, stay as they are
        training.model.compile(dynamic=False, mode=None if arithmetic.compile is True else arithmetic.compile)
    return asdict(arithmetic) | ({} if has_bf16(device) else {"lacks": "bfloat16"})
