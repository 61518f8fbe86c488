"""Data sets of small images that torchvision downloads. All images are in memory."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from batch_renorm.data.loaders import Draw, Source
from batch_renorm.data.minibatches import AUGMENTATION, generator
from batch_renorm.errors import UserError


class TorchvisionSet(Source):
    """A torchvision data set. Training images are shifted, and perhaps mirrored, by (seed, step, worker, slot).

    Args:
        name: the name of torchvision's class.
        root: the folder for the download, which happens once.
        shift: largest shift of a training image in each direction, pixels.
        mirrored: whether half of the training images are mirrored.

    Raises:
        UserError: a download that fails.
    """

    needs_loader_processes = False  # the images are in memory

    def __init__(
        self,
        name: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"],
        root: str,
        shift: Annotated[int, Field(ge=0, le=1024)],
        mirrored: bool,
    ) -> None:
        self.shift, self.mirrored = shift, mirrored
        sets = {"train": obtained(name, root, train=True), "val": obtained(name, root, train=False)}
        self._labels = {split: np.asarray(data.targets, dtype=np.int64) for split, data in sets.items()}
        pixels = {split: torch.as_tensor(data.data) for split, data in sets.items()}
        self.pixels = {split: p.permute(0, 3, 1, 2) if p.ndim == 4 else p[:, None] for split, p in pixels.items()}
        _, self.channels, self.size, _ = self.pixels["train"].shape
        self.classes = int(self._labels["train"].max()) + 1

    def labels(self, split: str) -> np.ndarray:
        return self._labels[split]

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None = None) -> Tensor:
        """(n, channels, size, size) uint8."""
        images = self.pixels[split][torch.from_numpy(indices)]
        if draw is None:
            return images
        wide, size = pad(images, [self.shift] * 4), self.size
        for position, image in enumerate(wide):
            worker, slot = draw.place(position)
            numbers = generator(draw.seed, AUGMENTATION, slot, worker, draw.step)
            down, right = numbers.integers(2 * self.shift + 1, size=2)
            moved = image[:, down : down + size, right : right + size]
            images[position] = moved.flip(2) if self.mirrored and numbers.random() < 0.5 else moved
        return images

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        """(n, channels, size, size) float32 in [-1, 1]."""
        return torch.cat(fetched).to(device, non_blocking=True).float() / 127.5 - 1


def obtained(name: str, root: str, train: bool) -> Any:
    """torchvision's data set, downloaded if necessary; only one of several processes downloads it."""
    import torchvision.datasets

    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(root) / f".{name}.lock"):
            return getattr(torchvision.datasets, name)(root, train=train, download=True)
    except Exception as error:  # from the network, or from readers of truncated files
        reason = " ".join(str(getattr(error, "reason", "") or error).split())[:200] or type(error).__name__
        cure = "get it on a machine with a network and copy the folder, or delete it and begin again"
        raise UserError(f"cannot get {name} into data.root={root}: {reason}; {cure}") from error
