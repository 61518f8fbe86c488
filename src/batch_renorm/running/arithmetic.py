"""How a device computes: number formats and compiler. Each run records its choice in run.json.

With `auto` in configs/trainer a new run takes what suits its device. A resumed run keeps the first choice, so that
its rounding stays the same on other hardware as far as possible.
"""

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from batch_renorm.errors import UserError
from batch_renorm.running.schema import Machine


@dataclass(frozen=True)
class Arithmetic:
    """The chosen options, named as in configs/trainer."""

    precision: Literal[32, "bf16"]
    compile: bool
    tf32: bool
    deterministic: bool


def choose_arithmetic(machine: Machine, device: torch.device, began_with: dict[str, Any] | None) -> Arithmetic:
    """Choose a run's arithmetic; `began_with` is the choice recorded in its run.json.

    On GPUs with bfloat16 (compute capability 8.0 and up) the network's forward and backward run under bfloat16
    autocast; mu, sigma, the loss, the weights and evaluation stay float32. GPUs without it (V100, T4) use float32, even
    if the run began with bfloat16 elsewhere. Nothing is compiled by default: on a GPU nobody has measured it.
    """
    bf16 = has_bf16(device)
    if machine.precision == "bf16" and not bf16:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"trainer.precision=bf16, but {name} has no bfloat16: say 32, or auto")
    choice: dict[str, Any] = {"precision": "bf16" if device.type == "cuda" and bf16 else 32, "compile": False}
    for name in choice:
        if getattr(machine, name) != "auto":
            choice[name] = getattr(machine, name)
        elif began_with and (bf16 or name != "precision"):
            choice[name] = began_with.get(name, choice[name])
    return Arithmetic(**choice, tf32=machine.tf32, deterministic=machine.deterministic)


def has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def configure_torch(arithmetic: Arithmetic) -> None:
    """Set torch's own switches."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arithmetic.tf32
    # tuning may choose other convolution kernels at every start
    torch.backends.cudnn.benchmark = not arithmetic.deterministic
    if arithmetic.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(arithmetic.deterministic)


def entries(arithmetic: Arithmetic, device: torch.device) -> dict[str, Any]:
    """The entries for run.json."""
    return asdict(arithmetic) | ({} if has_bf16(device) else {"lacks": "bfloat16"})
