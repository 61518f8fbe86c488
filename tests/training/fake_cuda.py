"""A fake GPU: tensors on a device "cuda" that have a shape and no memory, and a list of what makes the host wait.

An operation on tensors of two devices is an error, as on a GPU.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
PINNED: set[int] = set()
"""Page-locked storages."""


class Waits(TorchDispatchMode):
    """Lists the places where the host waits: it reads a value, or a copy blocks. Enter it within `fake_cuda`."""

    def __enter__(self) -> list[str]:
        super().__enter__()
        self.places: list[str] = []
        return self.places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func).removeprefix("aten.").partition(".")[0]
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name == "_local_scalar_dense":
            if inputs[0].device == CUDA:
                self.places.append(f"a value is read at {place()}")
            return 1
        if name in ("nonzero", "equal", "is_nonzero", "masked_select") and any(t.device == CUDA for t in inputs):
            self.places.append(f"{name} at {place()}")
        pin = kwargs.pop("pin_memory", None)
        result = func(*args, **kwargs)
        if pin:
            PINNED.update(t.untyped_storage()._cdata for t in tree_leaves(result))
        if name in ("_to_copy", "copy_"):
            source, target = (inputs[0], result) if name == "_to_copy" else (inputs[1], inputs[0])
            host = source if target.device == CUDA else target
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            page_locked = host.untyped_storage()._cdata in PINNED
            if source.device.type != target.device.type and not (non_blocking and page_locked):
                self.places.append(f"a copy from {source.device.type} to {target.device.type} blocks at {place()}")
        return result


def pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy."""
    result = tensor.clone()
    PINNED.add(result.untyped_storage()._cdata)
    return result


def place() -> str:
    """The innermost line of the call stack that is neither torch's dispatcher nor this file."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in ("/src/batch_renorm/", "/timm/", "/torch/optim/", "/torch/nn/utils/")):
            return f"{file.rpartition('/src/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class WithoutDevice(FakeTensorMode):
    """Never uses the real device, whatever torch.cuda reports."""

    avoid_device_init = True


def convolution_format(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """The memory format that cuDNN chooses; without a driver torch uses other convolutions, which know only planes."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Fake tensors on "cuda", even without a GPU; torch.cuda reports one GPU, on which nothing has to be waited for."""
    events = mock.Mock(**{"return_value.query.return_value": True, "return_value.elapsed_time.return_value": 1.0})
    properties = SimpleNamespace(
        name="fake", major=9, minor=0, total_memory=80 << 30, L2_cache_size=50 << 20, multi_processor_count=132
    )
    answers = {
        "Event": events, "Stream": events, "current_stream": events, "stream": lambda *_: nullcontext(),
        "is_available": lambda: True, "device_count": lambda: 1, "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties, "get_device_name": lambda *_: "fake",
        "is_bf16_supported": lambda *_, **__: True, "synchronize": lambda *_: None,
    }  # fmt: skip
    with ExitStack() as stack:
        patch = mock.patch.object
        for name, answer in answers.items():
            stack.enter_context(patch(torch.cuda, name, answer))
        stack.enter_context(patch(Tensor, "record_stream", return_value=None))
        stack.enter_context(patch(Tensor, "pin_memory", pinned))
        stack.enter_context(patch(torch._C, "_conv_determine_backend_memory_format", convolution_format))
        if hasattr(fake_tensor, "init_gpu_context"):  # which would start the device
            stack.enter_context(patch(fake_tensor, "init_gpu_context", return_value=None))
        stack.callback(PINNED.clear)
        stack.enter_context(WithoutDevice(allow_non_fake_inputs=True))
        yield


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Call the backward of each operation of this project, and give every parameter a gradient.

    Autograd's own engine needs the real device; its other formulas are torch's.
    """
    seen: set[Any] = {None}
    nodes: list[Any] = [loss.grad_fn]
    while nodes:
        if (node := nodes.pop()) in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)
        elif isinstance(node, BackwardCFunction):
            node.apply(*[torch.empty(out.shape, dtype=out.dtype, device=CUDA) for out in node._input_metadata])
