"""Encoded images to pixels: one decoder for every source, so that the same bytes give the same pixels.

JPEG goes to libjpeg-turbo through simplejpeg; what it cannot read (a PNG under a JPEG's name) and what
it converts otherwise (CMYK) to Pillow. Neither turns an image as its EXIF data says: ILSVRC's published
accuracies come from readers that do not.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

from batch_renorm.data.files import BadInputError

CMYK = ("CMYK", "YCCK")
MOST_PIXELS = 178_956_970
"""Of more Pillow suspects an attack on the memory, and says so."""


class UnreadableImage(BadInputError):
    """Bytes that are no image, or a part of one."""


def decode(data: bytes) -> np.ndarray:
    """The pixels of an encoded image, (height, width, 3) uint8, RGB; grey images have three equal channels.

    Of 16 bits a channel the upper 8 are taken.

    Raises:
        UnreadableImage: truncated, no image, or with pixels whose range nobody knows.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in CMYK and height * width <= MOST_PIXELS:
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        pass  # not a JPEG, or a broken one: Pillow reads it or says what is wrong
    try:
        with Image.open(io.BytesIO(data)) as image:
            return rgb(image)
    except Exception as error:  # Pillow's plugins raise what they like on damaged files
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        raise UnreadableImage(reason or type(error).__name__) from error


def rgb(image: Image.Image) -> np.ndarray:
    """Pillow's image as (height, width, 3) uint8. Its own conversion clips what is deeper than 8 bits at 255."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        what = "32-bit integers" if image.mode == "I" else "floats"
        raise UnreadableImage(f"its pixels are {what}, whose range nobody knows: save it with 8 or 16 bits a channel")
    return np.array(image.convert("RGB"))


def kind(data: bytes) -> str:
    """What an encoded image is, by its first bytes: "JPEG", "CMYK JPEG", "PNG" or "other"."""
    if data.startswith(b"\xff\xd8"):
        try:
            return "CMYK JPEG" if simplejpeg.decode_jpeg_header(data)[2] in CMYK else "JPEG"
        except ValueError:  # one that only Pillow reads
            return "JPEG"
    return "PNG" if data.startswith(b"\x89PNG") else "other"
