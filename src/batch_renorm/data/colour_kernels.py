"""Prepares images on a GPU in two Triton kernels: distorts colours, scales to [-1, 1], writes channels-last.

`augmentation.distort` computes the same in some 70 operations on float32 images. The kernels read the uint8
pixels twice and write once. Contrast is scaled around an image's mean, which the first kernel sums
in a fixed order: there are no atomics, and equal inputs give equal bits.

No GPU has run these kernels yet: tests run them through Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
SPLITS = 8
"""Number of programs that share the sums of an image."""


def ready(pixels: Tensor, colours: Tensor | None) -> Tensor:
    """Images for the network, (n, 3, h, w) float32 in [-1, 1], channels-last.

    Args:
        pixels: (n, 3, h, w) uint8; channels-last costs no copy.
        colours: (n, 5) float32 in [0, 1), as `augmentation.distort` takes them, or None for evaluation.
    """
    n, _, height, width = pixels.shape
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    places = height * width
    result = torch.empty(
        pixels.shape, device=pixels.device, dtype=torch.float32, memory_format=torch.channels_last
    )  # fmt: skip
    if not n:
        return result
    sums = torch.empty(n, 3, SPLITS, device=pixels.device)
    if colours is not None:
        add_up[n, SPLITS](pixels, colours, sums, places, SPLITS=SPLITS, BLOCK=BLOCK)
    grid = (n, triton.cdiv(places, BLOCK))
    distorted = colours is not None
    finish[grid](pixels, colours if distorted else sums, sums, result, places, distorted, SPLITS=SPLITS, BLOCK=BLOCK)
    return result


@triton.jit
def add_up(pixels, colours, sums, places, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over a split of an image, for each channel, for the mean around which contrast is scaled."""
    image, split = tl.program_id(0), tl.program_id(1)
    added, saturation, hue, _, colours_first = _draws(colours, image)
    red_sum = tl.zeros((BLOCK,), tl.float32)
    green_sum = tl.zeros((BLOCK,), tl.float32)
    blue_sum = tl.zeros((BLOCK,), tl.float32)
    for block in range(split, tl.cdiv(places, BLOCK), SPLITS):
        place = block * BLOCK + tl.arange(0, BLOCK)
        inside = place < places
        red, green, blue = _brightened(pixels, image, place, places, added)
        if colours_first:
            red, green, blue = _turned(red, green, blue, hue, saturation)
        red_sum += tl.where(inside, red, 0.0)
        green_sum += tl.where(inside, green, 0.0)
        blue_sum += tl.where(inside, blue, 0.0)
    out = sums + image * 3 * SPLITS + split
    tl.store(out, tl.sum(red_sum, 0))
    tl.store(out + SPLITS, tl.sum(green_sum, 0))
    tl.store(out + 2 * SPLITS, tl.sum(blue_sum, 0))


@triton.jit
def finish(
    pixels, colours, sums, result, places, DISTORTED: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    if DISTORTED:
        added, saturation, hue, contrast, colours_first = _draws(colours, image)
        split = sums + image * 3 * SPLITS + tl.arange(0, SPLITS)
        red_mean = tl.sum(tl.load(split), 0) / places
        green_mean = tl.sum(tl.load(split + SPLITS), 0) / places
        blue_mean = tl.sum(tl.load(split + 2 * SPLITS), 0) / places
        red, green, blue = _brightened(pixels, image, place, places, added)
        if colours_first:
            red, green, blue = _turned(red, green, blue, hue, saturation)
        red = (red - red_mean) * contrast + red_mean
        green = (green - green_mean) * contrast + green_mean
        blue = (blue - blue_mean) * contrast + blue_mean
        if colours_first == 0:
            red, green, blue = _turned(red, green, blue, hue, saturation)
        red, green, blue = _clipped(red), _clipped(green), _clipped(blue)
    else:
        red, green, blue = _brightened(pixels, image, place, places, 0.0)
    out = result + (image.to(tl.int64) * places + place) * 3
    tl.store(out, red * 2 - 1, mask=inside)
    tl.store(out + 1, green * 2 - 1, mask=inside)
    tl.store(out + 2, blue * 2 - 1, mask=inside)


@triton.jit
def _draws(colours, image):
    """Added brightness, saturation factor, hue shift in turns, contrast, and whether contrast comes last."""
    row = colours + image * 5
    return (
        -32 / 255 + 64 / 255 * tl.load(row + 1),
        0.5 + tl.load(row + 2),
        -0.2 + 0.4 * tl.load(row + 3),
        0.5 + tl.load(row + 4),
        tl.where(tl.load(row) < 0.5, 1, 0),
    )


@triton.jit
def _brightened(pixels, image, place, places, added):
    start = pixels + (image.to(tl.int64) * places + place) * 3
    inside = place < places
    red = tl.load(start, mask=inside, other=0).to(tl.float32) / 255 + added
    green = tl.load(start + 1, mask=inside, other=0).to(tl.float32) / 255 + added
    blue = tl.load(start + 2, mask=inside, other=0).to(tl.float32) / 255 + added
    return red, green, blue


@triton.jit
def _clipped(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _turned(red, green, blue, turn, factor):
    """Shift the hue and scale the saturation in HSV, as `augmentation.adjust_hue_saturation`."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    span = tl.maximum(chroma, 1e-12)
    sector = tl.where(value == green, (blue - red) / span + 2, (red - green) / span + 4)
    hue = tl.where(value == red, (green - blue) / span, sector) / 6 + turn
    hue -= tl.floor(hue)
    saturation = tl.where(value > 0, chroma / tl.maximum(value, 1e-12), 0.0)
    depth = value * _clipped(saturation * factor)
    return (
        value - depth * _share(5 + 6 * hue),
        value - depth * _share(3 + 6 * hue),
        value - depth * _share(1 + 6 * hue),
    )


@triton.jit
def _share(k):
    k -= 6 * tl.floor(k / 6)
    return _clipped(tl.minimum(k, 4 - k))
