"""Dropout and drop path as functions of (seed, step, worker, slot), like the images: no hidden random state.

So a resumed run drops what an uninterrupted one would have dropped, and ranks, passes and devices change no mask.
"""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from batch_renorm.data.hashing import mix, uniform
from batch_renorm.data.loaders import Draw
from batch_renorm.data.minibatches import MASKS, generator
from batch_renorm.errors import UserError

ELEMENTS, CHANNELS = (F.dropout,), (F.dropout1d, F.dropout2d, F.dropout3d)


class Masks(TorchFunctionMode):
    """Within it a network's F.dropout, F.dropout1d to 3d and Tensor.bernoulli_ draw by `keys`.

    nn.Dropout and timm's DropPath call these. The n-th draw of a forward has its own numbers, so a network must make
    its draws in the same order in every forward. torch.compile traces it.
    """

    keys: Tensor
    """(n,) int64, one for each image of the pass."""
    draws = 0

    def __enter__(self) -> "Masks":
        self.draws = 0
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ELEMENTS or func in CHANNELS:
            return self.dropout(func in CHANNELS, *args, **kwargs)
        if func is Tensor.bernoulli_:
            return self.bernoulli_(*args, **kwargs)
        return func(*args, **kwargs)

    def dropout(
        self, channels: bool, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        shape = input.shape if not channels else (*input.shape[:2], *[1] * (input.dim() - 2))
        kept = self.numbers(torch.Size(shape)) >= p
        return input * (kept / (1 - p) if p < 1 else kept).to(input.dtype)

    def bernoulli_(self, tensor: Tensor, p: float = 0.5, **_: Any) -> Tensor:
        return tensor.copy_(self.numbers(tensor.shape) < p)

    def numbers(self, shape: torch.Size) -> Tensor:
        """Uniform numbers in [0, 1), float32; an image's are the same in any pass."""
        images = len(self.keys)
        if shape[0] % images:
            raise UserError(
                f"the network draws random numbers of shape {tuple(shape)} for {images} images, and not some for each: "
                "use dropout or drop path"
            )
        self.draws += 1
        keys = mix(self.keys.int() + self.draws).to(torch.int64)
        return uniform(keys, prod(shape) // images).view(shape)


def image_keys(draw: Draw, images: int) -> Tensor:
    """(images,) int64: a random number below 2**32 for each image of a pass."""
    size = draw.minibatch or images
    workers = range(draw.worker, draw.worker + images // size)
    keys = [generator(draw.seed, MASKS, draw.step, worker).integers(2**32, size=size) for worker in workers]
    return torch.from_numpy(np.concatenate(keys))


class RandomLayers:
    """The random layers of a network, if it has any: `drawing` is around each forward of its training.

    The first forward shows whether anything is random. If nothing is, later ones pay nothing.

    Args:
        compiled: the network is; without the mode of its first forward it would be compiled again.

    Raises:
        UserError: the network has timm's DropBlock, whose scale depends on the other images of a pass.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        if any(isinstance(module, DropBlock2d) and module.drop_prob for module in model.modules()):
            raise UserError("the network's DropBlock scales an image by the others of its pass: use drop path (model)")
        self.masks, self.is_random, self._checked = Masks(), True, False
        self._unused: AbstractContextManager[Any] = self.masks if compiled else nullcontext()

    def drawing(self, draw: Draw | None, images: int, device: torch.device) -> AbstractContextManager[Any]:
        if not self._checked:
            return self._check(draw, images, device)
        if not self.is_random or draw is None:
            return self._unused
        keys = image_keys(draw, images)
        self.masks.keys = keys.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else keys
        return self.masks

    @contextmanager
    def _check(self, draw: Draw | None, images: int, device: torch.device) -> Iterator[None]:
        """Refuse a network that draws in another way: its numbers would depend on ranks, passes and restarts."""
        self._checked = True
        before = random_states(device)
        with self.drawing(draw, images, device):
            yield
        self.is_random = draw is None or self.masks.draws > 0
        if any(not np.array_equal(a, b) for a, b in zip(before, random_states(device), strict=True)):
            raise UserError(
                "the network draws random numbers by other means than dropout and drop path, which a resumed run and "
                "other ranks could not repeat: use F.dropout, nn.Dropout or timm's DropPath (model)"
            )


def random_states(device: torch.device) -> list[Any]:
    """The states of the global generators that a forward on the device may use: torch's, NumPy's and Python's."""
    states: list[Any] = [torch.get_rng_state(), list(np.random.get_state(legacy=True))[1], random.getstate()[1]]  # noqa: NPY002
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
