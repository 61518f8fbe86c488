"""ILSVRC-2012 from its folders of JPEG files, prepared as the Inception recipe does.

Training images are a crop of 5% to 100% of the area and aspect 3/4 to 4/3, perhaps mirrored, their
colours distorted in one of two orders; evaluation takes the central 87.5%. Every random number is a
function of (seed, step, worker, slot). Values are scaled to [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from batch_renorm.data.loaders import Draw
from batch_renorm.data.minibatches import AUGMENTATION, generator

EVALUATION_CROP = 0.875


@dataclass
class Fetched:
    """A minibatch as loader processes prepare it.

    pixels (n, 3, size, size) uint8; colours (n, 5) float32: order, brightness, saturation, hue,
    contrast, or None for evaluation.
    """

    pixels: Tensor
    colours: Tensor | None


class ImageNet:
    """Folders `root/train/<class>/*` and `root/val/<class>/*`; labels in the order of sorted class names.

    Args:
        root: the data set's folder.
        size: height and width that images are resized to, pixels.

    Raises:
        ValueError: no such folders, or a validation class that training does not have.
    """

    channels = 3

    def __init__(self, root: str, size: int) -> None:
        self.root, self.size = Path(root), size
        for split in ("train", "val"):
            if not (self.root / split).is_dir():
                raise ValueError(
                    f"no ImageNet at data.root={root}: looked for {self.root / split}/<class>/*.JPEG; download "
                    "ILSVRC-2012 from image-net.org and unpack it into folders of classes"
                )
        names, positions = find_classes(str(self.root / "train"))
        self.classes = len(names)
        self.files: dict[str, list[str]] = {}
        self._labels: dict[str, np.ndarray] = {}
        for split in ("train", "val"):
            extra = set(find_classes(str(self.root / split))[0]) - set(names)
            if extra:
                raise ValueError(f"{self.root / split} has the class {min(extra)}, which {self.root / 'train'} has not")
            found = make_dataset(str(self.root / split), positions, IMG_EXTENSIONS, allow_empty=True)
            self.files[split] = [file for file, _ in found]
            self._labels[split] = np.array([label for _, label in found], dtype=np.int64)

    def labels(self, split: str) -> np.ndarray:
        """The label of every image of a split, (images,) int64."""
        return self._labels[split]

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None) -> Fetched:
        """Decode, crop and resize; `draw` says how to crop, None takes the centre."""
        pixels = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        colours = torch.empty(len(indices), 5) if draw is not None else None
        for slot, index in enumerate(indices):
            image = self._decode(self.files[split][index])
            width, height = image.size
            if draw is None or colours is None:
                box, mirrored = central_box(width, height), False
            else:
                numbers = generator(draw.seed, AUGMENTATION, slot, draw.worker, draw.step)
                box, mirrored = random_box(numbers, width, height), numbers.random() < 0.5
                colours[slot] = torch.from_numpy(numbers.random(5))
            crop = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
            pixel = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
            pixels[slot] = pixel.flip(2) if mirrored else pixel
        return Fetched(pixels, colours)

    def _decode(self, file: str) -> Image.Image:
        try:
            return Image.open(file).convert("RGB")
        except OSError as error:
            raise ValueError(f"cannot read the image {file}: {error}; download it again or remove it") from error

    def images(self, fetched: list[Fetched], device: torch.device) -> Tensor:
        """Colours distorted where the images are for training, then scaled to [-1, 1]."""
        parts = []
        for part in fetched:
            images = part.pixels.to(device).float() / 255
            parts.append(distort(images, part.colours.to(device)) if part.colours is not None else images)
        return torch.cat(parts) * 2 - 1


def central_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The central 87.5% of the image, in both directions: left, top, right, bottom."""
    x, y = width * (1 - EVALUATION_CROP) / 2, height * (1 - EVALUATION_CROP) / 2
    return x, y, width - x, height - y


def random_box(numbers: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A crop of 5% to 100% of the area and aspect 3/4 to 4/3; the whole image if ten draws do not fit."""
    for _ in range(10):
        area = width * height * numbers.uniform(0.05, 1)
        aspect = numbers.uniform(3 / 4, 4 / 3)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if w <= width and h <= height:
            x, y = int(numbers.integers(width - w + 1)), int(numbers.integers(height - h + 1))
            return x, y, x + w, y + h
    return 0, 0, width, height


def distort(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness +-32/255, saturation 0.5..1.5, hue +-0.2, contrast 0.5..1.5, in one of two orders.

    Half of the images take brightness, saturation, hue, contrast; half brightness, contrast,
    saturation, hue. As in the recipe, brightness is added, and the result is clamped to [0, 1].

    Args:
        images: (n, 3, h, w) in [0, 1].
        draws: (n, 5) in [0, 1).
    """

    def column(index: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * draws[:, index]).view(-1, 1, 1, 1)

    images = images + column(1, -32 / 255, 32 / 255)
    saturation, hue, contrast = column(2, 0.5, 1.5), column(3, -0.2, 0.2), column(4, 0.5, 1.5)
    colours_first = draws[:, 0].view(-1, 1, 1, 1) < 0.5
    images = torch.where(colours_first, images, adjust_contrast(images, contrast))
    images = adjust_hue_saturation(images, hue, saturation)
    images = torch.where(colours_first, adjust_contrast(images, contrast), images)
    return images.clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def adjust_hue_saturation(images: Tensor, hue: Tensor, factor: Tensor) -> Tensor:
    """Scale saturation and turn the hue (in turns) of RGB images, through HSV, values outside [0, 1] clipped."""
    hsv = rgb_to_hsv(images.clamp(0, 1))
    h, s, v = hsv.unbind(1)
    hue, factor = hue[:, 0], factor[:, 0]
    return hsv_to_rgb(torch.stack([(h + hue) % 1, (s * factor).clamp(0, 1), v], 1))


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """(n, 3, h, w) in [0, 1]; hue in turns."""
    value, brightest = rgb.max(1)
    chroma = value - rgb.min(1).values
    saturation = chroma / value.clamp_min(1e-12)
    red, green, blue = rgb.unbind(1)
    span = chroma.clamp_min(1e-12)
    sectors = torch.stack([(green - blue) / span, (blue - red) / span + 2, (red - green) / span + 4], 1)
    hue = sectors.gather(1, brightest[:, None])[:, 0] / 6 % 1
    return torch.stack([hue, saturation, value], 1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of `rgb_to_hsv`: f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6."""
    h, s, v = hsv.unbind(1)
    k = (torch.tensor([5.0, 3.0, 1.0], device=hsv.device).view(1, 3, 1, 1) + 6 * h[:, None]) % 6
    return v[:, None] - (v * s)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
