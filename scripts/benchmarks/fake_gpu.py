"""A fake GPU without data: a real training step runs on it, and everything that the GPU would do is counted.

FakeTensorMode makes tensors on a device "cuda" that have a shape but no memory; an operation on two devices is an
error, as on a GPU. A dispatch mode also counts what reaches the device: operations, bytes read and written,
floating point operations, copies from and to the host, and values that the host reads, which makes it wait for the
device. Triton's kernels are counted but not launched. Bytes are those of an operation's inputs and outputs, without
the effect of caches.
"""

import linecache
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CUDA = torch.device("cuda", 0)
OURS = ("/src/batch_renorm/", "/timm/", "/pytorch_lightning/", "/torch/optim/", "/torch/nn/utils/")


class Call(NamedTuple):
    """An operation that reached the device; `bytes` are those of its inputs and outputs."""

    name: str
    place: str
    bytes: int
    flops: int


@dataclass
class Count:
    """What reached the device during a `Counting`."""

    calls: list[Call] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    """Places where the host waits for the device: it reads a value, or a copy blocks."""

    @property
    def bytes(self) -> int:
        return sum(call.bytes for call in self.calls)

    def of(self, prefix: str) -> "Count":
        """The calls of operations whose names begin like this."""
        return Count([call for call in self.calls if call.name.startswith(prefix)])

    def at(self, file: str) -> "Count":
        """The calls from a file."""
        return Count([call for call in self.calls if call.place.startswith(file)])


class Counting(TorchDispatchMode):
    """Counts calls; enter it within `fake_cuda`, as the innermost mode."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __enter__(self) -> Count:
        super().__enter__()
        return self.count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func).removeprefix("aten.").partition(".")[0]
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name == "_local_scalar_dense":
            if inputs[0].device == CUDA:
                self.count.waits.append(f"a value is asked for at {place()}")
            return 1
        if name in ("nonzero", "equal", "is_nonzero", "masked_select") and any(t.device == CUDA for t in inputs):
            self.count.waits.append(f"{name} at {place()}")
        page_locked = kwargs.pop("pin_memory", None)
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if page_locked:
            PINNED.update(t.untyped_storage()._cdata for t in outputs)
        if name in ("_to_copy", "copy_"):
            source, target = (inputs[0], outputs[0]) if name == "_to_copy" else (inputs[1], inputs[0])
            self.look_at_copy(source, target, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        if name.startswith("_foreach") and not outputs:  # in place: the first list is written
            outputs = [t for t in args[0] if isinstance(t, Tensor)]
        if not func.is_view and name not in ALLOCATIONS and any(t.device == CUDA for t in outputs):
            moved = sum(t.numel() * t.element_size() for t in inputs + outputs if t.device == CUDA)
            flops = flop_registry.get(func.overloadpacket)
            self.add(name, moved, flops(*args, **kwargs, out_val=result) if flops else 0)
        return result

    def look_at_copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        if source.device.type == target.device.type:
            return
        host = source if target.device == CUDA else target
        if not (non_blocking and host.untyped_storage()._cdata in PINNED):
            how = "from memory that is not pinned" if non_blocking else "that blocks"
            shape = tuple(source.shape)
            self.count.waits.append(f"a copy {how}, {source.device.type} to {target.device.type} {shape}, at {place()}")

    def add(self, name: str, moved: int, flops: int) -> None:
        self.count.calls.append(Call(name, place(), moved, flops))


ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operations that reach the memory's allocator and not the device."""
PINNED: set[int] = set()
"""Page-locked storages."""


def pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy."""
    result = tensor.clone()
    PINNED.add(result.untyped_storage()._cdata)
    return result


def place() -> str:
    """The innermost line of the call stack in the packages of `OURS`."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in OURS):
            name = file.rpartition("/src/")[2].rpartition("site-packages/")[2]
            return f"{name}:{frame.f_lineno} {linecache.getline(file, frame.f_lineno).strip()}"
        frame = frame.f_back
    return "?"


class Kernel:
    """Replaces a Triton kernel: a launch counts as an operation that moves each of its tensors once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            strays = [t.device for t in tensors if t.device != CUDA]
            assert not strays, f"{self.name} is given a tensor on {strays[0]}"
            counting = next(
                (m for m in reversed(torch.utils._python_dispatch._get_current_dispatch_mode_stack())
                 if isinstance(m, Counting)), None,
            )  # fmt: skip
            if counting is not None:
                counting.add(f"triton {self.name}", sum(t.numel() * t.element_size() for t in tensors), 0)

        return launch


class WithoutDevice(FakeTensorMode):
    """Never uses the real device, whatever torch.cuda reports."""

    avoid_device_init = True


def convolution_format(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """The memory format that cuDNN chooses; without a driver torch uses other convolutions, which know only planes."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in (x, weight))
    return torch.channels_last if last else torch.contiguous_format


class Event:
    """A fake event and stream: nothing runs, so nothing waits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0


@contextmanager
def fake_cuda(capability: tuple[int, int] = (9, 0), memory: int = 80 << 30) -> Iterator[None]:
    """Context with fake tensors on "cuda", even without a GPU; torch.cuda reports one GPU."""
    from batch_renorm.norm import functional, triton_kernels

    properties = SimpleNamespace(
        name="fake", major=capability[0], minor=capability[1], total_memory=memory, L2_cache_size=50 << 20,
        multi_processor_count=132,
    )  # fmt: skip
    answers: dict[str, Any] = {
        "Event": Event, "Stream": Event, "current_stream": lambda *_: Event(), "stream": lambda *_: nullcontext(),
        "is_available": lambda: True, "device_count": lambda: 1, "get_device_capability": lambda *_: capability,
        "get_device_properties": lambda *_: properties, "get_device_name": lambda *_: "fake",
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0), "synchronize": lambda *_: None,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for name, kernel in list(vars(triton_kernels).items()):
            if type(kernel).__module__.startswith("triton.") and not name.startswith("_"):
                stack.enter_context(mock.patch.object(triton_kernels, name, Kernel(name)))
        stack.enter_context(mock.patch.object(functional, "TRITON_DEVICES", ("cuda",)))
        stack.enter_context(mock.patch.object(Tensor, "record_stream", return_value=None))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", pinned))
        stack.enter_context(mock.patch.object(torch._C, "_conv_determine_backend_memory_format", convolution_format))
        if hasattr(fake_tensor, "init_gpu_context"):  # which would start the device
            stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", return_value=None))
        stack.callback(PINNED.clear)
        stack.enter_context(WithoutDevice(allow_non_fake_inputs=True))
        yield


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Do what loss.backward() does, node by node: autograd's own engine needs the real device."""
    assert loss.grad_fn is not None
    waiting: Counter[Any] = Counter()  # edges into a node that have not been visited yet
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    gradients: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        if hasattr(node, "variable"):
            leaf = node.variable
            if given:
                leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
            continue
        found: list[Tensor | None] = [None] * len(node.next_functions)
        if given:
            outputs = [given.get(i) for i in range(max(given) + 1)]
            found = list(call(node, outputs))
        for (following, number), gradient in zip(node.next_functions, found, strict=True):
            if following is None:
                continue
            if gradient is not None:
                wanted = following.variable if hasattr(following, "variable") else following._input_metadata[number]
                gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)  # of what was broadcast
                sums = gradients[following]
                sums[number] = gradient if number not in sums else sums[number] + gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def call(node: Any, outputs: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients for the edges of a node."""
    if issubclass(type(node), BackwardCFunction):
        outputs += [None] * (len(node._input_metadata) - len(outputs))
        left = [t for t in node.apply(*outputs) if t is not None]  # it also returns entries for inputs without an edge
        return [left.pop(0) if edge is not None else None for edge, _ in node.next_functions]
    found = node(*outputs)
    return list(found) if isinstance(found, tuple) else [found]
