"""Encoded images to pixels: one decoder for every source, so that the same bytes give the same pixels.

JPEG goes to libjpeg-turbo through simplejpeg; what it cannot read (a PNG under a JPEG's name) and what
it converts otherwise (CMYK) to Pillow. Neither turns an image as its EXIF data says: ILSVRC's published
accuracies come from readers that do not.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

CMYK = ("CMYK", "YCCK")


class UnreadableImage(ValueError):
    """Bytes that are no image, or a part of one.

    torch makes a loader process's exception again from its whole traceback, whose last line is for people.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


def decode(data: bytes) -> np.ndarray:
    """The pixels of an encoded image, (height, width, 3) uint8, RGB; grey images have three equal channels.

    Raises:
        UnreadableImage: truncated, or no image.
    """
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in CMYK:
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        pass  # not a JPEG, or a broken one: Pillow reads it or says what is wrong
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        raise UnreadableImage(reason or type(error).__name__) from error


def kind(data: bytes) -> str:
    """What an encoded image is, by its first bytes: "JPEG", "CMYK JPEG", "PNG" or "other"."""
    if data.startswith(b"\xff\xd8"):
        return "CMYK JPEG" if simplejpeg.decode_jpeg_header(data)[2] in CMYK else "JPEG"
    return "PNG" if data.startswith(b"\x89PNG") else "other"
