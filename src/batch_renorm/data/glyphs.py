"""The embedded data set: characters of the DejaVu fonts in random pose, contrast and noise.

A label is a character. An image is a pure function of (split, index): every random number in it is
a hash of these two, computed with integer tensor operations, so that whole minibatches are drawn at
once, on any device, and no image is ever stored.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from batch_renorm.data.hashing import uniform

TEMPLATE_SIZE = 32
"""Characters are rendered once, into squares of this many pixels."""

SPLITS = {"train": 0, "val": 1}


def font_files() -> list[Path]:
    """The upright DejaVu fonts that matplotlib ships, sans first."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / name for name in ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")]


def render(character: str, font: object) -> np.ndarray | None:
    """One character as a (TEMPLATE_SIZE, TEMPLATE_SIZE) uint8 image, its ink centred; None if it has no ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)  # type: ignore[attr-defined]
    if right <= left or bottom <= top:
        return None
    image = Image.new("L", (TEMPLATE_SIZE, TEMPLATE_SIZE))
    corner = (TEMPLATE_SIZE - right - left) / 2, (TEMPLATE_SIZE - bottom - top) / 2
    ImageDraw.Draw(image).text(corner, character, fill=255, font=font)  # type: ignore[arg-type]
    pixels = np.asarray(image)
    return pixels if pixels.max() > 127 else None


@lru_cache(maxsize=1)
def templates(labels: int) -> Tensor:
    """The first `labels` distinct characters of a fixed pseudo-random order, (labels, size, size) in [0, 1].

    Characters that look the same (Latin A and Greek Alpha) count once: the first one drawn is kept.
    """
    from PIL import ImageFont
    from PIL.features import check

    if not check("freetype2"):
        raise RuntimeError("Pillow was built without FreeType, which draws the glyphs; install the Pillow wheel")
    chosen: dict[bytes, np.ndarray] = {}
    for file in font_files():
        font = ImageFont.truetype(str(file), 22, layout_engine=ImageFont.Layout.BASIC)
        codes = np.array(sorted(_codes(file)))
        for code in np.random.Generator(np.random.Philox(2017)).permutation(codes):
            pixels = render(chr(code), font)
            if pixels is not None:
                chosen.setdefault((pixels > 127).tobytes(), pixels)
            if len(chosen) == labels:
                return torch.from_numpy(np.stack(list(chosen.values()))).float() / 255
    raise ValueError(f"the DejaVu fonts have {len(chosen)} distinct characters; {labels} labels were asked for")


def _codes(file: Path) -> set[int]:
    """The code points of the letters that a font has."""
    import unicodedata

    from matplotlib.ft2font import FT2Font

    return {code for code in FT2Font(str(file)).get_charmap() if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo")}


class Glyphs:
    """Generated images, `labels` x `train_images` for training and `labels` x `val_images` for validation.

    Args:
        labels: number of characters.
        train_images, val_images: images per label in each split.
        size: height and width of an image in pixels.
        rotation: largest angle, radians.
        scale: smallest and largest size of the character relative to the image.
        shear, shift: largest shear, and largest shift in half image sizes.
        noise: standard deviation of the pixel noise; the character's contrast is 0.5 to 1.5.
        hidden: fraction of images that show only a small part of the character.
        window: smallest and largest side of the visible window, relative to the image.
        hidden_window: the same for the hidden fraction.
    """

    channels = 1

    def __init__(
        self,
        labels: int,
        train_images: int,
        val_images: int,
        size: int,
        rotation: float,
        scale: tuple[float, float],
        shear: float,
        shift: float,
        noise: float,
        hidden: float,
        window: tuple[float, float],
        hidden_window: tuple[float, float],
    ) -> None:
        self.classes, self.size = labels, size
        self.images_per_label = {"train": train_images, "val": val_images}
        self.rotation, self.scale, self.shear, self.shift, self.noise = rotation, tuple(scale), shear, shift, noise
        self.hidden, self.window, self.hidden_window = hidden, window, hidden_window
        self.templates = templates(labels)

    def labels(self, split: str) -> np.ndarray:
        """The label of every image of a split, (images,) int64: all of the first label, then the second."""
        return np.repeat(np.arange(self.classes), self.images_per_label[split])

    def fetch(self, split: str, indices: np.ndarray, draw: object = None) -> Tensor:
        """What a loader process prepares: nothing but the key of each image, (n,) int64."""
        return torch.from_numpy(indices * len(SPLITS) + SPLITS[split])

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        """Draw images on the device, (n, 1, size, size) float32 of about zero mean.

        The inverse of a rotation, anisotropic scaling, shear and shift says where in the template
        each pixel comes from. The character is seen through a window, often a small one: one such
        image does not tell its label, while another image of the same label does. Contrast is of
        either sign, so ink is not always bright.
        """
        keys = torch.cat(fetched).to(device)
        if self.templates.device != device:
            self.templates = self.templates.to(device)
        n = len(keys)
        pose = uniform(keys, 0, 13)
        angle = (2 * pose[:, 0] - 1) * self.rotation
        low, high = self.scale
        x_scale, y_scale = 1 / (low + (high - low) * pose[:, 1]), 1 / (low + (high - low) * pose[:, 2])
        shear = (2 * pose[:, 3] - 1) * self.shear
        x_shift, y_shift = (2 * pose[:, 4] - 1) * self.shift, (2 * pose[:, 5] - 1) * self.shift
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([x_scale * cos, x_scale * (shear * cos - sin), x_shift], 1),
            torch.stack([y_scale * sin, y_scale * (shear * sin + cos), y_shift], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [n, 1, self.size, self.size], align_corners=False)
        per_label = torch.where(keys % len(SPLITS) == 0, self.images_per_label["train"], self.images_per_label["val"])
        label = keys // len(SPLITS) // per_label
        ink = F.grid_sample(self.templates[label][:, None], grid, align_corners=False)
        contrast = (0.5 + pose[:, 6]) * torch.where(pose[:, 7] < 0.5, -1.0, 1.0)
        noise = uniform(keys, 1, self.size * self.size).view_as(ink) - 0.5
        return ink * self._visible(pose[:, 8:]) * contrast.view(-1, 1, 1, 1) + noise * (12**0.5 * self.noise)

    def _visible(self, draws: Tensor) -> Tensor:
        """A rectangular window of random size and place, (n, 1, size, size) of zeros and ones."""
        small = draws[:, :1] < self.hidden
        low, high = (torch.where(small, self.hidden_window[i], self.window[i]) for i in (0, 1))
        side = low + (high - low) * draws[:, 1:3]
        start = (1 - side) * draws[:, 3:5]
        place = (torch.arange(self.size, device=draws.device) + 0.5) / self.size
        inside = (place >= start[..., None]) & (place < (start + side)[..., None])
        return (inside[:, 0, :, None] & inside[:, 1, None, :]).float()[:, None]
