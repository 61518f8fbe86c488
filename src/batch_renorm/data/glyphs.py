"""The embedded data set: an image shows several letters, and its label names one of them.

ImageNet's photographs likewise show several things. The label's letter is usually the boldest. Often it is
not, and then the image alone does not determine its label: no network can get all images right.

An image is a pure function of (split, index). Every random number in it is a hash of these two, computed with integer
tensor operations. So whole minibatches are drawn at once, the same on any device, and no image is stored.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from batch_renorm.data.hashing import uniform
from batch_renorm.data.loaders import Draw, Source
from batch_renorm.errors import UserError

TEMPLATE_SIZE = 32
"""Letters are rendered once, into squares of this many pixels."""
ALIKE = 0.8
"""Two letters look alike if the correlation of their pixels, at the resolution of an image, is above this."""
CORNERS = 4
"""Letters stand in different corners of an image."""
SPLITS = {"train": 0, "val": 1}


def font_files() -> list[Path]:
    """The upright DejaVu fonts that matplotlib ships, sans first."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / name for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")]


def render(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray | None:
    """One letter as a (TEMPLATE_SIZE, TEMPLATE_SIZE) uint8 image, its ink centred; None if it has no ink."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (TEMPLATE_SIZE, TEMPLATE_SIZE))
    corner = (TEMPLATE_SIZE - right - left) / 2, (TEMPLATE_SIZE - bottom - top) / 2
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
    pixels = np.asarray(image)
    return pixels if pixels.max() > 127 else None


@lru_cache(maxsize=1)
def letters(labels: int) -> tuple[str, Tensor]:
    """The first `labels` letters in Unicode's order, without accents and without letters that look like earlier ones.

    Returns:
        The letters, and their templates: (labels, TEMPLATE_SIZE, TEMPLATE_SIZE) float32 in [0, 1].

    Raises:
        UserError: the fonts have fewer.
    """
    chosen, templates, looks = "", [], np.empty((labels, (TEMPLATE_SIZE // 2) ** 2), dtype=np.float32)
    for file in font_files():
        font = ImageFont.truetype(str(file), 22, layout_engine=ImageFont.Layout.BASIC)
        for character in _plain_letters(file):
            pixels = render(character, font)
            if pixels is None:
                continue
            coarse = pixels.reshape(TEMPLATE_SIZE // 2, 2, TEMPLATE_SIZE // 2, 2).mean((1, 3)).reshape(-1)
            look = (coarse - coarse.mean()) / np.linalg.norm(coarse - coarse.mean())
            if (looks[: len(chosen)] @ look > ALIKE).any():
                continue
            looks[len(chosen)] = look
            chosen += character
            templates.append(pixels)
            if len(chosen) == labels:
                return chosen, torch.from_numpy(np.stack(templates)).float() / 255
    raise UserError(f"the DejaVu fonts have {len(chosen)} letters that look unlike; {labels} labels were asked for")


def _plain_letters(file: Path) -> list[str]:
    """The letters of a font that are not another letter with an accent."""
    from matplotlib.ft2font import FT2Font

    characters = map(chr, sorted(FT2Font(str(file)).get_charmap()))
    return [c for c in characters if unicodedata.category(c) in ("Lu", "Ll", "Lo") and not unicodedata.decomposition(c)]


class Glyphs(Source):
    """Generated images, `labels` x `train_images` for training and `labels` x `val_images` for validation.

    Args:
        labels: number of letters.
        train_images, val_images: images per label in each split.
        size: height and width of an image in pixels.
        others: number of letters besides the label's, drawn uniformly from all labels; at most 3. With 0 an image
            shows one thing, as in CIFAR.
        contrast: least and largest contrast of the label's letter.
        other_contrast: the same for each other letter. In most images the label's letter is the boldest.
        rotation: largest angle of a letter, radians.
        stretch: largest change of a letter's width and height, as a fraction.
        jitter: largest distance of a letter from the middle of its corner, in half image sizes.
        exposure: largest change of a whole image's light, in stops: powers of 2.
        noise: standard deviation of the pixel noise, independent of the exposure.
    """

    channels = 1
    needs_loader_processes = False  # a key takes no time
    image_bytes = 8

    def __init__(
        self,
        labels: Annotated[int, Field(ge=1, le=10_000)],
        train_images: Annotated[int, Field(ge=1, le=1_000_000)],
        val_images: Annotated[int, Field(ge=1, le=1_000_000)],
        size: Annotated[int, Field(ge=1, le=1024)],
        others: Annotated[int, Field(ge=0, lt=CORNERS)],
        contrast: tuple[NonNegativeFloat, NonNegativeFloat],
        other_contrast: tuple[NonNegativeFloat, NonNegativeFloat],
        rotation: NonNegativeFloat,
        stretch: NonNegativeFloat,
        jitter: NonNegativeFloat,
        exposure: Annotated[float, Field(ge=0, le=10)],
        noise: NonNegativeFloat,
    ) -> None:
        self.classes, self.size, self.others = labels, size, others
        self.images_per_label = {"train": train_images, "val": val_images}
        self.contrast, self.other_contrast = tuple(contrast), tuple(other_contrast)
        self.rotation, self.stretch, self.jitter, self.exposure, self.noise = rotation, stretch, jitter, exposure, noise
        self.letters, self.templates = letters(labels)
        self.numbers = [others, 6 * (1 + others), CORNERS, 1, size**2]  # letters, poses, corners, light, noise

    def labels(self, split: str) -> np.ndarray:
        """The label of every image of a split, (images,) int64: all of the first label, then the second."""
        return np.repeat(np.arange(self.classes), self.images_per_label[split])

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None = None) -> Tensor:
        """The key of each image, (n,) int64; a loader process prepares nothing else."""
        return torch.from_numpy(indices * len(SPLITS) + SPLITS[split])

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        """Draw images on the device, (n, 1, size, size) float32."""
        keys = torch.cat(fetched).to(device)
        if self.templates.device != device:
            self.templates = self.templates.to(device)
        n, k = len(keys), 1 + self.others
        other, pose, corner, light, noise = uniform(keys, sum(self.numbers)).split(self.numbers, 1)
        pose, shown = pose.reshape(n, k, 6), self._shown(keys, other)
        places = self._placed(pose, self._corners(corner, k)) @ self._pixels(device)  # (n * k, 2, size * size)
        grid = places.mT.reshape(n * k, self.size, self.size, 2)
        ink = F.grid_sample(self.templates[shown.view(-1), None], grid, align_corners=False).view(n, k, -1)
        light = torch.exp2(self.exposure * (2 * light - 1))
        image = (ink * self._contrasts(pose[..., 5])).sum(1) * light
        return image.add_(noise - 0.5, alpha=12**0.5 * self.noise).view(n, 1, self.size, self.size)

    def shown(self, keys: Tensor) -> Tensor:
        """The letters that each image shows, (n, 1 + others) int64, the label's letter first."""
        return self._shown(keys, uniform(keys, self.others))

    def _shown(self, keys: Tensor, draws: Tensor) -> Tensor:
        per_label = torch.where(keys % len(SPLITS) == 0, self.images_per_label["train"], self.images_per_label["val"])
        label = keys // len(SPLITS) // per_label
        return torch.cat([label[:, None], (draws * self.classes).long()], 1)

    def _corners(self, draws: Tensor, count: int) -> Tensor:
        """A different corner for each letter of an image, (n, count, 2) of -0.5 and 0.5."""
        corner = draws.argsort(1)[:, :count]
        return torch.stack([corner % 2, corner // 2], 2) - 0.5

    def _pixels(self, device: torch.device) -> Tensor:
        """The centres of an image's pixels, from -1 to 1, and ones: (3, size * size)."""
        middles = (torch.arange(self.size, device=device) * 2 + 1) / self.size - 1
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        return torch.stack([x.reshape(-1), y.reshape(-1), torch.ones_like(x).view(-1)])

    def _placed(self, pose: Tensor, corners: Tensor) -> Tensor:
        """The affine maps from an image's pixels to each letter's template, (n * count, 2, 3)."""
        turn, x, y, width, height = (2 * pose[..., :5] - 1).flatten(0, 1).unbind(1)
        cos, sin = (turn * self.rotation).cos(), (turn * self.rotation).sin()
        x, y = (
            self.jitter * place + corner for place, corner in zip((x, y), corners.flatten(0, 1).unbind(1), strict=True)
        )
        wide, high = 1 + self.stretch * width, 1 + self.stretch * height
        rows = [
            torch.stack([cos, -sin, sin * y - cos * x], 1) / wide[:, None],
            torch.stack([sin, cos, -sin * x - cos * y], 1) / high[:, None],
        ]
        return torch.stack(rows, 1)

    def _contrasts(self, draws: Tensor) -> Tensor:
        """How bold each letter is, (n, count, 1)."""
        ranges = draws.new_tensor([self.contrast, *[self.other_contrast] * self.others])
        low, high = ranges.unbind(1)
        return (low + (high - low) * draws)[..., None]
