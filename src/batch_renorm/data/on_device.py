"""Decoding on the device: loader processes pass on JPEG bytes, and a GPU's decoder makes the pixels.

For machines with many GPUs and few CPU cores. nvImageCodec decodes, an optional package. The resized parts differ a
little from the CPU's, because another decoder makes them: choose one of the two for a run. What a device cannot decode
(PNG, CMYK) the loader processes do. **No GPU has run this**: tests have the same library decode on a CPU.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from batch_renorm.data import regions
from batch_renorm.data.augmentation import Box
from batch_renorm.data.decoding import CMYK, decode
from batch_renorm.errors import UserError

THREADS = 4
"""Of a rank's decoder on the host: reasoned, not tuned, since loader processes have the other cores."""


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
        """Decode, crop and resize on the device: (n, 3, size, size) uint8.

        Raises:
            UserError: the device has no decoder, or an image cannot be read.
        """
        rows = self.table.tolist()
        parts = self.data.split([row[0] for row in rows])
        decoded = iter(decode_jpegs([part.numpy() for part, row in zip(parts, rows, strict=True) if row[3]], device))
        result = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8, device=device)
        for place, (part, row) in enumerate(zip(parts, rows, strict=True)):
            _, height, width, jpeg, left, top, right, bottom, mirrored = row
            image = next(decoded) if jpeg else part.view(height, width, 3).to(device)
            crop = image[top:bottom, left:right].permute(2, 0, 1)[None]
            resized = F.interpolate(crop.float(), (self.size, self.size), mode="bilinear", antialias=True)[0]
            resized = resized.round_().clamp_(0, 255)
            result[place] = (resized.flip(2) if mirrored else resized).to(torch.uint8)
        return result


def decode_jpegs(images: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """JPEG files, (bytes,) uint8 each, as (height, width, 3) uint8 on a device.

    Whole ones: nvImageCodec 0.9.0 does not decode parts right on GPUs (its issue 55).

    Raises:
        UserError: the device has no decoder, or an image cannot be read.
    """
    if not images:
        return []
    # on this stream, which is also what frees their memory in turn
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    streams = [regions.codec().CodeStream(image) for image in images]
    decoded = decoder(device).decode(streams, params=regions.as_rgb(), cuda_stream=stream)
    return [
        # the CPU's decoder says what is wrong, or reads what this one does not
        torch.from_numpy(decode(data.tobytes())).to(device) if image is None else as_tensor(image, device)
        for data, image in zip(images, decoded, strict=True)
    ]


def as_tensor(image: Any, device: torch.device) -> Tensor:
    """nvImageCodec's image, without a copy."""
    if device.type == "cuda":
        return torch.from_dlpack(image)
    return torch.from_numpy(np.asarray(image))  # its DLPack asks for a GPU


@cache
def decoder(device: torch.device) -> Any:
    """A device's decoder: of a GPU its JPEG engine or kernels, never the CPU's in their place.

    Raises:
        UserError: it does not decode. nvJPEG, which does that on GPUs, is a package of its own.
    """
    library = regions.codec()
    if device.type == "cuda":
        kinds = [library.HW_GPU_ONLY, library.GPU_ONLY, library.HYBRID_CPU_GPU]
        number = torch.cuda.current_device() if device.index is None else device.index
    else:
        kinds, number = [library.CPU_ONLY], library.NVIMGCODEC_DEVICE_CPU_ONLY
    made = library.Decoder(
        device_id=number,
        max_num_cpu_threads=THREADS,
        backends=[library.Backend(kind) for kind in kinds],
        options=":fancy_upsampling=1",
    )
    sample = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(sample, "JPEG")
    if made.decode(library.CodeStream(sample.getvalue()), params=regions.as_rgb()) is None:
        raise UserError(
            f"data.decode=device: nvImageCodec decodes no JPEG on {device}: {regions.INSTALL}, or say data.decode=cpu"
        )
    return made


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
