"""Preparing 32 training images, from reading to resized uint8, as a ratio to torchvision's reference recipe."""

import io
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from batch_renorm.data.files import is_image
from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Draw
from batch_renorm.data.sources import find
from batch_renorm.data.store import prepare
from batch_renorm.errors import UserError
from benchmarks.measure import cell, interleaved, ratios, spread, table

REFERENCE = "torchvision's recipe"
MINIBATCH = 32


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, help="folder of photographs; default: pictures made to ImageNet's sizes")
    parser.add_argument("--count", type=int, default=256, help="images, at most")


def run(args: Namespace) -> dict:
    """Every variant prepares the same files, 32 at a time; images per second are for one core."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        about = write(photographs(args.images) if args.images else made(args.count), root / "set", args.count)
        about["what"] = f"from {args.images.name}" if args.images else "made with a 1/f spectrum"
        prepare(find(root / "set"), root / "store", 8192, 1, lambda images: None)
        seconds = measure(root, args)
    images = about["images"]
    rates = {name: spread([images / value for value in values]) for name, values in seconds.items()}
    times = ratios(seconds, REFERENCE)
    speeds = {name: 1 / ratio["median"] for name, ratio in times.items()}
    title = (
        f"{images} files, {about['kilobytes']:.0f} kB and {about['megapixels']:.2f} megapixels each, {about['what']}"
    )
    body = [[name, cell(rates[name]), f"{speeds[name]:.2f}"] for name in seconds]
    table(title, ["", "images/s on one core", "times the recipe"], body)
    return {"files": about, "images_per_second": rates, "times_the_recipe": speeds}


def measure(root: Path, args: Namespace) -> dict[str, list[float]]:
    folders, store = Images(str(root / "set"), 299), Images(str(root / "store"), 299)
    recipe = transforms.Compose(
        [
            transforms.RandomResizedCrop(299, scale=(0.05, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),  # uint8, like ours: the device converts to float
        ]
    )
    reference = ImageFolder(str(root / "set/train"), recipe)
    count = len(reference)
    minibatches = [np.arange(start, min(start + MINIBATCH, count)) for start in range(0, count, MINIBATCH)]

    def theirs() -> None:
        for indices in minibatches:
            torch.stack([reference[index][0] for index in indices])

    def ours(source: Images) -> None:
        for step, indices in enumerate(minibatches):
            source.fetch("train", indices, Draw(0, step, 0))

    runs = {REFERENCE: theirs, "from folders": lambda: ours(folders), "from a store": lambda: ours(store)}
    return interleaved(runs, args)


def write(pictures: Iterator[bytes], root: Path, count: int) -> dict:
    """Write files in the folders of a data set; return their properties."""
    sizes, pixels = [], []
    for number, data in zip(range(count), pictures, strict=False):
        for split in ("train", "val"):
            path = root / split / f"n{number % 8:08d}" / f"{number:06d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        sizes.append(len(data))
        pixels.append(np.prod(Image.open(io.BytesIO(data)).size))
    if not sizes:
        raise UserError("no images to measure with")
    kilobytes, megapixels = float(np.mean(sizes)) / 1e3, float(np.mean(pixels)) / 1e6
    return {"images": len(sizes), "kilobytes": kilobytes, "megapixels": megapixels}


def photographs(folder: Path) -> Iterator[bytes]:
    for path in sorted(path for path in folder.rglob("*") if is_image(path.name)):
        yield path.read_bytes()


def made(count: int) -> Iterator[bytes]:
    """Pictures of 500 x 375 pixels and about 110 kB, with the 1/f spectrum of natural images; 3 of 4 in 4:4:4."""
    rng = np.random.default_rng(0)
    height, width = 375, 500
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(y, x), 1 / width)
    mixing = np.array([[1, 0.3, 0.1], [1, 0, -0.3], [1, -0.3, 0.1]])  # channels of photographs are similar
    for number in range(count):
        noise = rng.normal(size=(3, height, width)) * np.array([1, 0.5, 0.5])[:, None, None]
        planes = np.fft.ifft2(np.fft.fft2(noise) * falloff).real
        image = np.einsum("cp,phw->hwc", mixing, planes)
        image = 128 + 50 * image / image.std() + rng.normal(size=(height, width, 1)) * 2
        picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
        buffer = io.BytesIO()
        for quality in (96, 94, 92, 90, 87, 84, 80, 75, 70):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, subsampling=0 if number % 4 else 2)
            if buffer.tell() < 118_000:
                break
        yield buffer.getvalue()
