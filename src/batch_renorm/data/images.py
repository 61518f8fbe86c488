"""A data set of image files for training and evaluation: decoded, cropped, with distorted colours.

Loader processes read, decode, crop and resize; colours are distorted on the device, many images at once.
Every random number is a function of (seed, step, worker, slot). Values are scaled to [-1, 1].
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from batch_renorm.data import on_device, regions
from batch_renorm.data.augmentation import Box, distort, random_box, resized, resized_centre
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.files import Files
from batch_renorm.data.loaders import Draw
from batch_renorm.data.minibatches import AUGMENTATION, generator
from batch_renorm.data.sources import HOW_TO_GET, find
from batch_renorm.errors import UserError

COLOURS_AT_ONCE = 64
"""Images whose colours plain operations distort at once; each needs some 10 MB at 299 pixels, and more do not help."""
TRITON_DEVICES = ("cuda",) if find_spec("triton") is not None else ()
"""Devices on which two kernels prepare all images at once."""


@dataclass
class Fetched:
    """Images as loader processes prepare them.

    Args:
        pixels: (n, 3, size, size) uint8, channels innermost, or encoded images that the device decodes.
        colours: (n, 5) float32: order, brightness, saturation, hue, contrast; None for evaluation.
        seconds: time spent on the images: read, decode, augment.
        replaced: number of unreadable images that were replaced.
    """

    pixels: Tensor | on_device.Encoded
    colours: Tensor | None
    seconds: dict[str, float] = field(default_factory=dict)
    replaced: int = 0

    def pin_memory(self) -> "Fetched":
        colours = self.colours.pin_memory() if self.colours is not None else None
        return Fetched(self.pixels.pin_memory(), colours, self.seconds, self.replaced)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Fetched":
        colours = self.colours.to(device, non_blocking=non_blocking) if self.colours is not None else None
        return Fetched(self.pixels.to(device, non_blocking=non_blocking), colours, self.seconds, self.replaced)

    def record_stream(self, stream: Any) -> None:
        for tensor in (self.pixels, self.colours):
            if isinstance(tensor, Tensor):
                tensor.record_stream(stream)


class Images:
    """A data set below `root` (see `sources.find`).

    Args:
        root: the data set's folder.
        size: height and width that images are resized to, pixels.
        classes, train_images, val_images: required numbers; None accepts any number.
        on_error: for an unreadable image, "fail" ends the run, and "skip" takes the next readable image
            of its label. The replacement depends on the data set alone.
        decode: where training images are decoded: in loader processes, or on the training device.

    Raises:
        UserError: there is no data set, or not the required one.
    """

    channels = 3

    @property
    def image_bytes(self) -> int:
        """Bytes of an image that a loader process passes on."""
        return 3 * self.size * self.size

    def __init__(
        self,
        root: str,
        size: Annotated[int, Field(ge=1, le=10_000)],
        classes: PositiveInt | None = None,
        train_images: PositiveInt | None = None,
        val_images: PositiveInt | None = None,
        on_error: Literal["fail", "skip"] = "fail",
        decode: Literal["cpu", "device"] = "cpu",
    ) -> None:
        if decode == "device" and on_error == "skip":
            raise UserError("data.on_error=skip needs data.decode=cpu: an image that does not decode ends the device's")
        if decode == "device" and regions.codec() is None:
            raise UserError(f"data.decode=device needs nvImageCodec: {regions.INSTALL}, or say data.decode=cpu")
        if root == "???":
            raise UserError(f"say where the images are, data.root=/path/to/imagenet; {HOW_TO_GET}")
        found = find(root)
        if not found.random_access:
            raise UserError(
                f"data.root={root} has {found.kind}, which cannot be read in any order: make a store of them with "
                f"python scripts/prepare_imagenet.py {root} STORE, then data.root=STORE"
            )
        for name, text, want, have in (
            ("classes", "classes", classes, len(found.classes)),
            ("train_images", "training images", train_images, len(found.splits["train"].labels)),
            ("val_images", "validation images", val_images, len(found.splits["val"].labels)),
        ):
            if want is not None and have != want:
                raise UserError(
                    f"data.root={root} has {have:,} {text}, not {want:,} (data.{name}): {HOW_TO_GET}; "
                    "for another data set say data=folder"
                )
        self.root, self.size, self.on_error, self.decode = root, size, on_error, decode
        self.kind, self.names, self.files = found.kind, found.classes, found.splits
        self.classes = len(found.classes)
        self._warned: set[str] = set()

    def labels(self, split: str) -> np.ndarray:
        """The label of every image of a split, (images,) int64."""
        return self.files[split].labels

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None) -> Fetched:
        """Decode, crop and resize; `draw` determines random crops, None means the centre."""
        if draw is not None and self.decode == "device":
            return self._fetch_encoded(split, indices, draw)
        shape = len(indices), 3, self.size, self.size
        pixels = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        colours = torch.empty(len(indices), 5) if draw is not None else None
        seconds, replaced = {"read": 0.0, "decode": 0.0, "augment": 0.0}, 0
        for position, index in enumerate(map(int, indices)):
            if draw is None or colours is None:
                image, skipped = self._image(split, index, seconds, decode)
                start = time.perf_counter()
                pixels[position] = resized_centre(image, self.size)
            else:
                crop = Crop(draw, position)
                part = partial(regions.decode_part, choose=crop)
                image, skipped = self._image(split, index, seconds, part)
                start = time.perf_counter()
                small = resized(image, self.size)
                pixels[position] = small.flip(2) if crop.mirrored else small
                colours.numpy()[position] = crop.colours
            replaced += skipped
            seconds["augment"] += time.perf_counter() - start
        return Fetched(pixels, colours, seconds, replaced)

    def image(self, split: str, index: int) -> np.ndarray:
        """An image as it is, (height, width, 3) uint8; where it cannot be read, as `on_error` says."""
        return self._image(split, index, {"read": 0.0, "decode": 0.0}, decode)[0]

    def _image(
        self, split: str, index: int, seconds: dict[str, float], pixels: Callable[[bytes], np.ndarray]
    ) -> tuple[np.ndarray, bool]:
        """What `pixels` makes of an image, or of the one that replaces it, and whether it is replaced."""
        files = self.files[split]
        for candidate in with_replacements(files, index) if self.on_error == "skip" else [index]:
            start = middle = time.perf_counter()
            try:
                data = files.read(candidate)
                middle = time.perf_counter()
                return pixels(data), candidate != index
            except (OSError, UnreadableImage) as error:
                self._complain(files, candidate, error)
            finally:
                seconds["read"] += middle - start
                seconds["decode"] += time.perf_counter() - middle
        raise UnreadableImage(f"no image of the label of {files.name(index)} can be read")

    def _complain(self, files: Files, index: int, error: Exception) -> None:
        name = files.name(index)
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if self.on_error == "fail":
            raise UnreadableImage(
                f"cannot read the image {name}: {reason}; get it again, or replace what cannot be read by other "
                "images of the label: data.on_error=skip"
            ) from error
        if name not in self._warned:
            self._warned.add(name)
            print(f"replacing the image {name}, which cannot be read: {reason}", file=sys.stderr, flush=True)

    def _fetch_encoded(self, split: str, indices: np.ndarray, draw: Draw) -> Fetched:
        files, seconds = self.files[split], {"read": 0.0, "decode": 0.0, "augment": 0.0}
        images, boxes, mirrored = [], [], []
        colours = torch.empty(len(indices), 5)
        for position, index in enumerate(map(int, indices)):
            start = time.perf_counter()
            try:
                data = files.read(index)
                seconds["read"] += time.perf_counter() - start
                image = on_device.encoded(data)
            except (OSError, UnreadableImage) as error:
                self._complain(files, index, error)
                raise
            crop = Crop(draw, position)
            images.append(image)
            boxes.append(crop(image.width, image.height))
            mirrored.append(crop.mirrored)
            colours.numpy()[position] = crop.colours
        return Fetched(on_device.join(images, boxes, mirrored, self.size), colours, seconds)

    def images(self, fetched: list[Fetched], device: torch.device) -> Tensor:
        """Distort the colours of training images, then scale all images to [-1, 1]."""
        parts = []
        for part in fetched:
            there = part.to(device, non_blocking=True)
            assert isinstance(there.pixels, Tensor)
            if device.type in TRITON_DEVICES:
                from batch_renorm.data import colour_kernels  # here because importing triton takes time

                parts.append(colour_kernels.ready(there.pixels, there.colours))
            else:
                parts.append(ready(there.pixels, there.colours))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def ready(pixels: Tensor, colours: Tensor | None) -> Tensor:
    """Same as `colour_kernels.ready`, in plain operations on some images at a time."""
    result = torch.empty(pixels.shape, device=pixels.device, memory_format=torch.channels_last)
    for first in range(0, len(pixels), COLOURS_AT_ONCE):
        some = slice(first, first + COLOURS_AT_ONCE)
        images = pixels[some].float() / 255
        if colours is not None:
            images = distort(images, colours[some])
        result[some] = images * 2 - 1
    return result


class Crop:
    """The random numbers of an image of a pass, drawn when its size is known: called with width and height, its box.

    Attributes:
        mirrored: whether the crop is.
        colours: (5,) the numbers of its colours.
    """

    def __init__(self, draw: Draw, position: int) -> None:
        self.draw, self.position = draw, position

    def __call__(self, width: int, height: int) -> Box:
        worker, slot = self.draw.place(self.position)
        numbers = generator(self.draw.seed, AUGMENTATION, slot, worker, self.draw.step)
        box = random_box(numbers, width, height)
        self.mirrored = bool(numbers.random() < 0.5)
        self.colours = numbers.random(5)
        return box


def with_replacements(files: Files, index: int) -> Any:
    """The index of an image, then of the other images of its label in order: the replacements of unreadable images."""
    label = files.labels[index]
    first, after = np.searchsorted(files.labels, [label, label + 1])
    count = int(after - first)
    return (int(first) + (index - int(first) + step) % count for step in range(count))
