"""The recipe's preparation of images: crops and distorted colours.

It follows Inception-v3, operation by operation (tensorflow/models: inception/image_processing.py). Training images
are cropped by `tf.image.sample_distorted_bounding_box`, half of them are mirrored, and their colours are distorted
in one of two orders. Evaluation takes the central 87.5%. One departure: every resize is bilinear with antialiasing.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

EVALUATION_CROP = 0.875
ASPECTS = 0.75, 1.33
AREAS = 0.05, 1.0
COVERED = 0.1
"""The fraction of an object that a crop must cover; without object boxes, the fraction of the image."""
ATTEMPTS = 100

Box = tuple[int, int, int, int]
"""left, top, right, bottom, in pixels."""


def central_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The central 87.5% of the image, in both directions: left, top, right, bottom."""
    x, y = width * (1 - EVALUATION_CROP) / 2, height * (1 - EVALUATION_CROP) / 2
    return x, y, width - x, height - y


def random_box(numbers: np.random.Generator, width: int, height: int, areas: tuple[float, float] = AREAS) -> Box:
    """A random crop as in TensorFlow's sampler; the whole image if no attempt fits.

    The aspect is uniform; then the height is uniform among those with an area of 5% to 100% of the image, or in
    `areas`. A crop of less than 10% covers too little and is drawn again. As in TensorFlow, a crop never touches the
    right or lower edge unless it is as wide or high as the image.
    """
    for _ in range(ATTEMPTS):
        aspect = numbers.uniform(*ASPECTS)
        size = crop_size(numbers, aspect, width, height, areas)
        if size is None:
            continue
        w, h = size
        y = int(numbers.integers(height - h)) if h < height else 0
        x = int(numbers.integers(width - w)) if w < width else 0
        if w * h >= COVERED * width * height:
            return x, y, x + w, y + h
    return 0, 0, width, height


def crop_size(
    numbers: np.random.Generator, aspect: float, width: int, height: int, areas: tuple[float, float] = AREAS
) -> tuple[int, int] | None:
    """Width and height of a crop with an aspect, its height uniform among those that fit; None if none fits.

    Follows GenerateRandomCrop of TensorFlow's sample_distorted_bounding_box_op.cc, including its rounding.
    """
    smallest, largest = (part * width * height for part in areas)
    low, high = round((smallest / aspect) ** 0.5), round((largest / aspect) ** 0.5)
    if round(high * aspect) > width:
        high = int((width + 0.5 - 1e-7) / aspect)
        high -= round(high * aspect) > width
    high = min(high, height)
    low = min(low, high)
    h = low + int(numbers.integers(high - low + 1)) if low < high else low
    h += round(h * aspect) * h < smallest
    h -= round(h * aspect) * h > largest
    w = round(h * aspect)
    fits = smallest <= w * h <= largest and 0 < w <= width and 0 < h <= height
    return (w, h) if fits else None


def resized(pixels: np.ndarray, size: int) -> Tensor:
    """An image or a part of one, antialiased bilinear, (3, size, size) uint8, channels innermost.

    Args:
        pixels: (height, width, 3) uint8.
    """
    # in this order: torch then knows that channels are innermost, and takes half the time
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)[0]


def resized_centre(pixels: np.ndarray, size: int) -> Tensor:
    """The central 87.5%, exact to fractions of a pixel, resized as in `resized`, (3, size, size) uint8."""
    image = Image.fromarray(pixels)
    centre = image.resize((size, size), Image.Resampling.BILINEAR, box=central_box(*image.size))
    return torch.from_numpy(np.array(centre)).permute(2, 0, 1)


def distort(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness +-32/255, saturation 0.5..1.5, hue +-0.2, contrast 0.5..1.5, in one of two orders.

    Half of the images take brightness, saturation, hue, contrast; half brightness, contrast,
    saturation, hue. As in the recipe, brightness is added, and only the result is clamped to [0, 1].

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
    """Scale saturation and turn the hue (in turns) of RGB images through HSV; values may be outside [0, 1]."""
    hsv = rgb_to_hsv(images)
    h, s, v = hsv.unbind(1)
    hue, factor = hue[:, 0], factor[:, 0]
    return hsv_to_rgb(torch.stack([(h + hue) % 1, (s * factor).clamp(0, 1), v], 1))


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """(n, 3, h, w); hue in turns. As in TensorFlow, a colour with no positive channel has no saturation."""
    value, brightest = rgb.max(1)
    chroma = value - rgb.min(1).values
    saturation = torch.where(value > 0, chroma / value.clamp_min(1e-12), 0)
    red, green, blue = rgb.unbind(1)
    span = chroma.clamp_min(1e-12)
    sectors = torch.stack([(green - blue) / span, (blue - red) / span + 2, (red - green) / span + 4], 1)
    hue = sectors.gather(1, brightest[:, None])[:, 0] / 6 % 1
    return torch.stack([hue, saturation, value], 1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """The inverse of `rgb_to_hsv`: f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + 6 h) mod 6."""
    h, s, v = hsv.unbind(1)
    # made on the device: copying a list there would wait for it
    n = torch.arange(5, 0, -2, dtype=hsv.dtype, device=hsv.device)
    k = (n.view(1, 3, 1, 1) + 6 * h[:, None]) % 6
    return v[:, None] - (v * s)[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
