"""Data sets of small images that torchvision downloads: all images in memory, augmented on the device.

Training images are shifted by some pixels and, if configured, half are mirrored. Every random number is
a function of (seed, step, worker, slot). Values are scaled to [-1, 1].
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from pydantic import Field
from torch import Tensor

from batch_renorm.data.loaders import Draw, Source
from batch_renorm.data.minibatches import AUGMENTATION, generator
from batch_renorm.errors import UserError

NAMES = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST")


class TorchvisionSet(Source):
    """A torchvision data set, in memory.

    Args:
        name: the name of torchvision's class: CIFAR100, MNIST, ...
        root: the folder for the download, which happens once.
        size: height and width that images are resized to, pixels.
        shift: largest shift of a training image in each direction, pixels.
        mirrored: whether half of the training images are mirrored.

    Raises:
        UserError: an unknown name, or a download that fails.
    """

    needs_loader_processes = False  # the images are in memory
    image_bytes = 40  # of a row of `fetch`

    def __init__(
        self,
        name: str,
        root: str,
        size: Annotated[int, Field(ge=1, le=1024)],
        shift: Annotated[int, Field(ge=0, le=1024)],
        mirrored: bool,
    ) -> None:
        if name not in NAMES:
            raise UserError(f"data.name={name} is none of {', '.join(NAMES)}")
        self.size, self.shift, self.mirrored = size, shift, mirrored
        self.pictures, self._labels = dict[str, Tensor](), dict[str, np.ndarray]()
        for split in ("train", "val"):
            data = obtained(name, root, train=split == "train")
            images = torch.as_tensor(data.data)
            images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
            self.pictures[split] = resized(images, size)
            self._labels[split] = np.asarray(data.targets, dtype=np.int64)
        self.channels = self.pictures["train"].shape[1]
        self.classes = int(self._labels["train"].max()) + 1
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def labels(self, split: str) -> np.ndarray:
        return self._labels[split]

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None = None) -> Tensor:
        """Images and their augmentation: (n, 5) int64 of split, index, down, right, mirrored."""
        rows = np.zeros((len(indices), 5), dtype=np.int64)
        rows[:, 0], rows[:, 1] = split != "train", indices
        rows[:, 2:4] = self.shift  # no change
        if draw is not None:
            for position in range(len(indices)):
                worker, slot = draw.place(position)
                numbers = generator(draw.seed, AUGMENTATION, slot, worker, draw.step)
                rows[position, 2:4] = numbers.integers(2 * self.shift + 1, size=2)
                rows[position, 4] = self.mirrored and numbers.random() < 0.5
        return torch.from_numpy(rows)

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        """(n, channels, size, size) float32 in [-1, 1]."""
        rows = torch.cat(fetched).to(device, non_blocking=True)
        train, val = self._all("train", device), self._all("val", device)
        kind, index, down, right, mirrored = rows.unbind(1)
        # from both splits, not only from the right one: checking which would wait for a GPU
        images = torch.where((kind == 0).view(-1, 1, 1, 1), train[index % len(train)], val[index % len(val)])
        images = F.pad(images.float() / 127.5 - 1, [self.shift] * 4, value=-1.0)
        place = torch.arange(self.size, device=device)
        y, x = down[:, None] + place, right[:, None] + place
        x = torch.where(mirrored[:, None] == 1, x.flip(1), x)
        n = torch.arange(len(rows), device=device)
        return images[n[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)

    def _all(self, split: str, device: torch.device) -> Tensor:
        if (split, device) not in self._on_device:
            self._on_device[split, device] = self.pictures[split].to(device)
        return self._on_device[split, device]


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
        raise UserError(
            f'cannot get {name} into data.root={root}: {reason}; on a machine with a network say python -c "import '
            f"torchvision; torchvision.datasets.{name}('{root}', download=True)\" and copy the "
            "folder, or delete it and begin again"
        ) from error


def resized(images: Tensor, size: int) -> Tensor:
    """Images resized with antialiased bilinear interpolation if necessary, (n, channels, size, size) uint8."""
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    return torch.cat([F.interpolate(p, (size, size), mode="bilinear", antialias=True) for p in images.split(1024)])
