"""Data sets of small images that torchvision downloads: all images in memory, augmented on the device.

Training images are shifted by some pixels and, if configured, half are mirrored. Every random number is
a function of (seed, step, worker, slot). Values are scaled to [-1, 1].
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from pydantic import Field
from torch import Tensor

from batch_renorm.data.loaders import Draw, Source
from batch_renorm.data.minibatches import AUGMENTATION, generator
from batch_renorm.errors import UserError


class TorchvisionSet(Source):
    """A torchvision data set, in memory.

    Args:
        name: the name of torchvision's class: CIFAR100, MNIST, ...
        root: the folder for the download, which happens once.
        size: height and width that images are resized to, pixels.
        shift: largest shift of a training image in each direction, pixels.
        mirrored: whether half of the training images are mirrored.

    Raises:
        UserError: a download that fails.
    """

    needs_loader_processes = False  # the images are in memory
    image_bytes = 32  # of a row of `fetch`

    def __init__(
        self,
        name: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST"],
        root: str,
        size: Annotated[int, Field(ge=1, le=1024)],
        shift: Annotated[int, Field(ge=0, le=1024)],
        mirrored: bool,
    ) -> None:
        self.size, self.shift, self.mirrored = size, shift, mirrored
        splits = {"train": obtained(name, root, train=True), "val": obtained(name, root, train=False)}
        self._labels = {split: np.asarray(data.targets, dtype=np.int64) for split, data in splits.items()}
        images = torch.cat([torch.as_tensor(data.data) for data in splits.values()])  # training images first
        self.pictures = resized(images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None], size)
        self.channels, self.classes = self.pictures.shape[1], int(self._labels["train"].max()) + 1

    def labels(self, split: str) -> np.ndarray:
        return self._labels[split]

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None = None) -> Tensor:
        """Images and their augmentation: (n, 4) int64 of place in `pictures`, down, right, mirrored."""
        rows = np.zeros((len(indices), 4), dtype=np.int64)
        rows[:, 0] = indices if split == "train" else indices + len(self._labels["train"])
        rows[:, 1:3] = self.shift  # no change
        if draw is not None:
            for position in range(len(indices)):
                worker, slot = draw.place(position)
                numbers = generator(draw.seed, AUGMENTATION, slot, worker, draw.step)
                rows[position, 1:3] = numbers.integers(2 * self.shift + 1, size=2)
                rows[position, 3] = self.mirrored and numbers.random() < 0.5
        return torch.from_numpy(rows)

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        """(n, channels, size, size) float32 in [-1, 1]."""
        rows = torch.cat(fetched).to(device, non_blocking=True)
        if self.pictures.device != device:
            self.pictures = self.pictures.to(device)
        index, down, right, mirrored = rows.unbind(1)
        images = F.pad(self.pictures[index].float() / 127.5 - 1, [self.shift] * 4, value=-1.0)
        place = torch.arange(self.size, device=device)
        y, x = down[:, None] + place, right[:, None] + place
        x = torch.where(mirrored[:, None] == 1, x.flip(1), x)
        n = torch.arange(len(rows), device=device)
        return images[n[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def obtained(name: str, root: str, train: bool) -> Any:
    """torchvision's data set, downloaded if necessary; only one of several processes downloads it.

    Raises:
        UserError: the download fails.
    """
    import torchvision.datasets

    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(root) / f".{name}.lock"):
            return getattr(torchvision.datasets, name)(root, train=train, download=True)
    except Exception as error:  # from the network, or from readers of truncated files
        reason = " ".join(str(getattr(error, "reason", "") or error).split())[:200] or type(error).__name__
        command = f"python -c \"import torchvision; torchvision.datasets.{name}('{root}', download=True)\""
        raise UserError(
            f"cannot get {name} into data.root={root}: {reason}; on a machine with a network say {command} and copy "
            "the folder, or delete it and begin again"
        ) from error


def resized(images: Tensor, size: int) -> Tensor:
    """Images resized with antialiased bilinear interpolation if necessary, (n, channels, size, size) uint8."""
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    return torch.cat([F.interpolate(p, (size, size), mode="bilinear", antialias=True) for p in images.split(1024)])
