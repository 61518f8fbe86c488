"""Encoded images to pixels: one decoder for every source, so that the same bytes give the same pixels.

libjpeg-turbo decodes JPEG through simplejpeg. Pillow decodes what simplejpeg cannot read (a PNG with a
JPEG name) or converts differently (CMYK). EXIF orientation is ignored, as in the readers behind ILSVRC's
published accuracies.
"""

import io

import numpy as np
import simplejpeg
from PIL import Image

from batch_renorm.errors import UserError

CMYK = ("CMYK", "YCCK")
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else 1 << 28
"""Pillow refuses larger images, which a damaged header may claim to be."""


class UnreadableImage(UserError):
    """Bytes that are not an image, or only a part of one."""


def decode(data: bytes) -> np.ndarray:
    """The pixels of an encoded image, (height, width, 3) uint8, RGB; grey images have three equal channels.

    Images with 16 bits per channel keep the upper 8 bits.

    Raises:
        UnreadableImage: a truncated image, no image, or pixels of unknown range.
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
    except Exception as error:  # Pillow's plugins may raise anything on damaged files
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        raise UnreadableImage(reason or type(error).__name__) from error


def rgb(image: Image.Image) -> np.ndarray:
    """Pillow's image as (height, width, 3) uint8. Pillow's own conversion would clip 16-bit values at 255."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        what = "32-bit integers" if image.mode == "I" else "floats"
        raise UnreadableImage(f"its pixels are {what}, whose range nobody knows: save it with 8 or 16 bits a channel")
    return np.array(image.convert("RGB"))


def kind(data: bytes) -> str:
    """The kind of an encoded image, from its header: "JPEG", "CMYK JPEG", "PNG" or "other"."""
    if data.startswith(b"\xff\xd8"):
        try:
            return "CMYK JPEG" if simplejpeg.decode_jpeg_header(data)[2] in CMYK else "JPEG"
        except ValueError:  # one that only Pillow reads
            return "JPEG"
    return "PNG" if data.startswith(b"\x89PNG") else "other"
