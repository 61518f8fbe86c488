"""The recipe's preparation of images: which part is taken, and how colours are distorted.

Training images are a crop of 5% to 100% of the area and aspect 3/4 to 4/3, perhaps mirrored, their
colours distorted in one of two orders; evaluation takes the central 87.5%.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

EVALUATION_CROP = 0.875

Box = tuple[int, int, int, int]
"""left, top, right, bottom, in pixels."""


def central_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The central 87.5% of the image, in both directions: left, top, right, bottom."""
    x, y = width * (1 - EVALUATION_CROP) / 2, height * (1 - EVALUATION_CROP) / 2
    return x, y, width - x, height - y


def random_box(numbers: np.random.Generator, width: int, height: int) -> Box:
    """A crop of 5% to 100% of the area and aspect 3/4 to 4/3; the whole image if ten draws do not fit."""
    for _ in range(10):
        area = width * height * numbers.uniform(0.05, 1)
        aspect = numbers.uniform(3 / 4, 4 / 3)
        w, h = max(1, round((area * aspect) ** 0.5)), max(1, round((area / aspect) ** 0.5))
        if w <= width and h <= height:
            x, y = int(numbers.integers(width - w + 1)), int(numbers.integers(height - h + 1))
            return x, y, x + w, y + h
    return 0, 0, width, height


def resized_part(pixels: np.ndarray, box: Box, size: int) -> Tensor:
    """A part of an image, antialiased bilinear, (3, size, size) uint8.

    Args:
        pixels: (height, width, 3) uint8.
    """
    left, top, right, bottom = box
    part = torch.from_numpy(pixels)[top:bottom, left:right].permute(2, 0, 1)[None]
    return F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]


def resized_centre(pixels: np.ndarray, size: int) -> Tensor:
    """The central 87.5%, to fractions of a pixel, antialiased bilinear, (3, size, size) uint8."""
    image = Image.fromarray(pixels)
    centre = image.resize((size, size), Image.Resampling.BILINEAR, box=central_box(*image.size))
    return torch.from_numpy(np.array(centre)).permute(2, 0, 1)


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
    # made on the device: a list's values would be copied there, which waits for it
    n = torch.arange(5, 0, -2, dtype=hsv.dtype, device=hsv.device)
    k = (n.view(1, 3, 1, 1) + 6 * h[:, None]) % 6
    return v[:, None] - (v * s)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
