"""Decoding on the device: loader processes pass on JPEG bytes, and a GPU's decoder makes the pixels.

This is for machines with many GPUs and few CPU cores. The decoders differ, so the resized parts differ slightly
from the CPU's: use one of the two for a whole run. Loader processes decode what a device cannot (PNG,
CMYK).
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from batch_renorm.data.augmentation import Box
from batch_renorm.data.decoding import CMYK, decode


@dataclass
class Image:
    """One image, uint8: JPEG bytes or, if `jpeg` is false, flattened (height, width, 3) pixels."""

    data: np.ndarray
    height: int
    width: int
    jpeg: bool


@dataclass
class Encoded:
    """Several images in one tensor, because each tensor from a loader process costs a file handle.

    Args:
        data: (bytes,) uint8.
        table: (n, 9) int64: bytes, height, width, whether JPEG, left, top, right, bottom, whether mirrored.
        size: height and width of the resized parts, pixels.
    """

    data: Tensor
    table: Tensor
    size: int

    def __len__(self) -> int:
        return len(self.table)

    def pin_memory(self) -> "Encoded":
        return self  # decoders read the bytes from the host

    def to(self, device: torch.device, non_blocking: bool = False) -> Tensor:
        """Decode, crop and resize on the device: (n, 3, size, size) uint8."""
        from torchvision.io import ImageReadMode, decode_jpeg

        rows = self.table.tolist()
        parts = self.data.split([row[0] for row in rows])
        encoded = [part for part, row in zip(parts, rows, strict=True) if row[3]]
        decoded = iter(decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)) if encoded else iter(())
        result = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8, device=device)
        for place, (part, row) in enumerate(zip(parts, rows, strict=True)):
            _, height, width, jpeg, left, top, right, bottom, mirrored = row
            image = next(decoded) if jpeg else part.view(height, width, 3).permute(2, 0, 1).to(device)
            crop = image[None, :, top:bottom, left:right]
            resized = F.interpolate(crop.float(), (self.size, self.size), mode="bilinear", antialias=True)[0]
            resized = resized.round_().clamp_(0, 255)
            result[place] = (resized.flip(2) if mirrored else resized).to(torch.uint8)
        return result


def encoded(data: bytes) -> Image:
    """An image in the form that the device decodes.

    Raises:
        UnreadableImage: not an image.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in CMYK:
            return Image(np.frombuffer(data, np.uint8), height, width, True)
    except ValueError:
        pass  # not a JPEG
    pixels = decode(data)
    height, width, _ = pixels.shape
    return Image(pixels.reshape(-1), height, width, False)


def join(images: list[Image], boxes: list[Box], mirrored: list[bool], size: int) -> Encoded:
    """Join images and their crops into one `Encoded`."""
    rows = [
        (len(image.data), image.height, image.width, image.jpeg, *box, flip)
        for image, box, flip in zip(images, boxes, mirrored, strict=True)
    ]
    data = torch.from_numpy(np.concatenate([image.data for image in images]))
    return Encoded(data, torch.tensor(rows, dtype=torch.int64), size)
