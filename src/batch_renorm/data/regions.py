"""Of a JPEG only the part that a crop needs: bit for bit what decoding all of it and cropping gives, in less time.

Files in strips are cut (`strips.py`). Of others nvImageCodec decodes a part on the CPU, with libjpeg-turbo, where it
is installed; it is optional, since it takes 67 MB. It reads rows above the part without making pixels of them, and
does not read rows below it. Only files of one scan, with nothing behind it and no other marker inside, are decoded
so: damage in them shows in pixels or not at all, so that reading less of one never takes what the whole is refused
for. Others are decoded whole: what is cut off, progressive files (those that lack scans are smoothed across a part's
edge), CMYK, and what is no JPEG.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from batch_renorm.data import strips
from batch_renorm.data.augmentation import Box
from batch_renorm.data.decoding import decode
from batch_renorm.data.scan import header_of, restarts_of

INSTALL = "pip install 'nvidia-nvimgcodec-cu13[nvjpeg]'"
MARGIN = 16
"""Pixels around the part that are decoded with it: colours of fewer pixels than the image has are interpolated."""


def decode_part(data: bytes, choose: Callable[[int, int], Box]) -> np.ndarray:
    """The pixels of a part of an encoded image, (height, width, 3) uint8: those of `part_of_whole`.

    Args:
        choose: the part, of an image's width and height; it may be called twice.

    Raises:
        UnreadableImage: as `decode`.
    """
    pixels = None
    if (found := strips.strips_of(data)) is not None:
        pixels = strips.part(data, found, choose(found.width, found.height))
    elif codec() is not None and (header := header_of(data)) is not None and restarts_of(data, header) is not None:
        pixels = _region(data, header.width, header.height, choose(header.width, header.height))
    return part_of_whole(data, choose) if pixels is None else pixels


def part_of_whole(data: bytes, choose: Callable[[int, int], Box]) -> np.ndarray:
    """Decodes all of an image and takes the part."""
    image = decode(data)
    left, top, right, bottom = choose(image.shape[1], image.shape[0])
    return image[top:bottom, left:right]


def _region(data: bytes, width: int, height: int, box: Box) -> np.ndarray | None:
    """A box of a JPEG; None where the library does not decode it."""
    left, top, right, bottom = box
    x, y = max(0, left - MARGIN), max(0, top - MARGIN)
    far_x, far_y = min(width, right + MARGIN), min(height, bottom + MARGIN)
    library = codec()
    try:
        stream = library.CodeStream(data).get_sub_code_stream(region=library.Region(y, x, far_y, far_x))
    except RuntimeError:  # it cannot read the header
        return None
    image = decoder(os.getpid()).decode(stream, params=as_rgb())
    if image is None or image.shape != (far_y - y, far_x - x, 3):
        return None
    return np.asarray(image)[top - y : bottom - y, left - x : right - x]


@cache
def decoder(process: int) -> Any:
    """nvImageCodec's decoder on the CPU, in the calling thread: one for a process, since it does not outlive a fork."""
    library = codec()
    return library.Decoder(
        device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY,
        max_num_cpu_threads=1,
        backends=[library.Backend(library.CPU_ONLY)],
    )


@cache
def as_rgb() -> Any:
    """Three channels of 8 bits, and no turn by EXIF."""
    library = codec()
    return library.DecodeParams(apply_exif_orientation=False, sample_format=library.SampleFormat.I_RGB)


@cache
def codec() -> Any:
    """nvImageCodec's module, imported at the first call; None where it is not installed or does not load."""
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # None says that an image is not decoded
    try:
        with _silent():
            from nvidia import nvimgcodec
    except ImportError:
        return None
    return nvimgcodec


@contextmanager
def _silent() -> Iterator[None]:
    """Standard error goes nowhere: the import says there which of its optional libraries are not installed."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
