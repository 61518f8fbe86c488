"""A data set of image files for training and evaluation: decoded, cropped, with distorted colours.

Loader processes read, decode, crop and resize; colours are distorted on the device, many images at once.
Every random number is a function of (seed, step, worker, slot). Values are scaled to [-1, 1].

libjpeg-turbo decodes JPEG through simplejpeg. Pillow decodes what simplejpeg cannot read (a PNG with a JPEG name) or
converts differently (CMYK). EXIF orientation is ignored, as in the readers behind ILSVRC's published accuracies.
"""

import io
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import simplejpeg
import torch
from PIL import Image
from pydantic import Field, PositiveInt
from torch import Tensor

from batch_renorm.data.augmentation import AREAS, distort, random_box, resized, resized_centre
from batch_renorm.data.files import printable
from batch_renorm.data.labels import chosen_labels
from batch_renorm.data.loaders import Draw, Fetched, Source
from batch_renorm.data.minibatches import AUGMENTATION, generator
from batch_renorm.data.sources import BOTH, HOW_TO_GET, find
from batch_renorm.errors import TransientReadError, UserError

COLOURS_AT_ONCE = 64
"""Images whose colours are distorted at once; each needs some 10 MB at 299 pixels, and more do not help."""
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


class Images(Source):
    """A data set below `root` (see `sources.find`).

    Args:
        root: the data set's folder.
        size: height and width that images are resized to, pixels.
        classes, train_images, val_images: required numbers of the whole data set; None accepts any number.
        labels: the part of its labels that is used: the first so many, or those of a file that names a class on each
            line. They are numbered from 0 on, in the data set's order. None takes all.
        missing_val: whether classes without validation images are refused or allowed.
        area: smallest and largest part of a training image that a crop takes.
        colours: whether the colours of training images are distorted.
        splits: ["val"] for validation images alone.
        class_list: a file that names the class of each label, see `sources.find`.

    Raises:
        UserError: there is no data set, or not the required one.
    """

    channels = 3

    @property
    def image_bytes(self) -> int:
        return 3 * self.size * self.size

    def __init__(
        self,
        root: str,
        size: Annotated[int, Field(ge=1, le=10_000)],
        classes: PositiveInt | None = None,
        train_images: PositiveInt | None = None,
        val_images: PositiveInt | None = None,
        labels: PositiveInt | str | None = None,
        missing_val: Literal["refuse", "allow"] = "refuse",
        area: Sequence[float] = AREAS,
        colours: bool = True,
        splits: Sequence[str] = BOTH,
        class_list: str | None = None,
    ) -> None:
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"data.area is the smallest and the largest part of an image, 0 to 1, got {list(area)}")
        if root == "???":
            raise UserError(f"say where the images are, data.root=/path/to/imagenet; {HOW_TO_GET}")
        found = find(root, splits, class_list)
        if not all(files.any_order for files in found.splits.values()):
            raise UserError(
                f"data.root={root} has {found.kind}, which cannot be read in any order: make a store of them with "
                f"python scripts/prepare_imagenet.py {root} STORE, then data.root=STORE"
            )
        required = {"classes": classes, "train_images": train_images, "val_images": val_images}
        counts = {f"{split}_images": len(files.labels) for split, files in found.splits.items()}
        for name, count in ({"classes": len(found.classes)} | counts).items():
            if required[name] not in (None, count):
                raise UserError(
                    f"data.root={root} has {count:,} {name.replace('_', ' ')}, not {required[name]:,} (data.{name}): "
                    f"{HOW_TO_GET}; for another data set say data=folder"
                )
        self.size, self.remarks = size, found.remarks
        self.area, self.colours = (area[0], area[1]), colours
        self.files, names = found.splits, found.classes
        if labels is not None:
            chosen = chosen_labels(labels, names)
            self.files = {split: files.of_labels(chosen) for split, files in found.splits.items()}
            names = [names[label] for label in chosen]
        self.classes = len(names)
        if len(self.files) == len(BOTH) and missing_val == "refuse":
            lacking = np.setdiff1d(self.files["train"].labels, self.files["val"].labels)
            if len(lacking):
                some = ", ".join(printable(names[label]) for label in lacking[:5]) + ", ..." * (len(lacking) > 5)
                raise UserError(
                    f"data.root={root} has no validation images of {len(lacking):,} of its {self.classes:,} classes "
                    f"({some}): add them, or say data.missing_val=allow if they are meant to be missing"
                )

    def labels(self, split: str) -> np.ndarray:
        return self.files[split].labels if split in self.files else np.empty(0, np.int64)

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None) -> Fetched:
        """Decode, crop and resize; `draw` determines random crops, None means the centre."""
        shape = len(indices), 3, self.size, self.size
        pixels = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        colours = torch.empty(len(indices), 5) if draw is not None and self.colours else None
        for position, index in enumerate(map(int, indices)):
            image = self.image(split, index)
            if draw is None:
                pixels[position] = resized_centre(image, self.size)
            else:
                pixels[position], numbers = augmented(image, self.size, draw, position, self.area)
                if colours is not None:
                    colours.numpy()[position] = numbers
        return Fetched(pixels, colours)

    def image(self, split: str, index: int) -> np.ndarray:
        """An image as it is, (height, width, 3) uint8."""
        files = self.files[split]
        try:
            return decode(files.read(index))
        except TransientReadError:
            raise
        except (OSError, UnreadableImage) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            cure = "get it again, or put another image of its label in its place"
            raise UnreadableImage(f"cannot read the image {files.name(index)}: {reason}; {cure}") from error

    def images(self, fetched: list[Fetched], device: torch.device) -> Tensor:
        """Distort the colours of training images, then scale all images to [-1, 1], channels innermost."""
        parts = []
        for part in fetched:
            sent = part.to(device, non_blocking=True)
            pixels, colours = sent.pixels, sent.colours
            result = torch.empty(pixels.shape, device=device, memory_format=torch.channels_last)
            for first in range(0, len(pixels), COLOURS_AT_ONCE):
                some = slice(first, first + COLOURS_AT_ONCE)
                scaled = pixels[some].float() / 255
                result[some] = (scaled if colours is None else distort(scaled, colours[some])) * 2 - 1
            parts.append(result)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def augmented(
    image: np.ndarray, size: int, draw: Draw, position: int, area: tuple[float, float] = AREAS
) -> tuple[Tensor, np.ndarray]:
    """A random crop of an image, perhaps mirrored, (3, size, size) uint8, and the (5,) numbers of its colours."""
    worker, slot = draw.place(position)
    numbers = generator(draw.seed, AUGMENTATION, slot, worker, draw.step)
    left, top, right, bottom = random_box(numbers, image.shape[1], image.shape[0], area)
    mirrored = numbers.random() < 0.5
    crop = resized(image[top:bottom, left:right], size)
    return crop.flip(2) if mirrored else crop, numbers.random(5)
