"""Draw a sheet of the embedded data set's images, with the letter of its label below each image.

python scripts/contact_sheet.py glyphs.png
python scripts/contact_sheet.py one_letter.png scale=one_letter     images of another scale
python scripts/contact_sheet.py darker.png data.exposure=3          with any options of train.py
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image, ImageDraw, ImageFont

from batch_renorm.data.glyphs import Glyphs, font_files
from batch_renorm.running.cli import exit_with, explained

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GAP, CAPTION = 4, 14  # screen pixels between images, and for the label below an image


def sheet(source: Glyphs, split: str, rows: int, columns: int, zoom: int) -> Image.Image:
    """Images spread evenly over the split, row by row; below each image the letter that its label names."""
    indices = np.linspace(0, len(source.labels(split)) - 1, rows * columns).astype(int)
    drawn = source.images([source.fetch(split, indices)], torch.device("cpu"))[:, 0]
    light = (drawn / drawn.quantile(0.999)).clamp(0, 1) ** 0.5  # gamma of a screen: dark images stay legible
    grey = (light * 255).to(torch.uint8).numpy()
    side = source.size * zoom
    page = Image.new("L", (columns * (side + GAP) + GAP, rows * (side + CAPTION + GAP) + GAP), 255)
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(str(font_files()[0]), CAPTION - 2)
    for place, (image, label) in enumerate(zip(grey, source.labels(split)[indices], strict=True)):
        left, top = GAP + place % columns * (side + GAP), GAP + place // columns * (side + CAPTION + GAP)
        page.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (left, top))
        pen.text((left + side / 2, top + side), source.letters[label], fill=0, font=font, anchor="ma")
    return page


def source(overrides: list[str]) -> Glyphs:
    """The data set of a run with these overrides; ends the program with one line if it is not the embedded one."""
    with explained(), initialize_config_dir(str(CONFIGS), version_base="1.3"):
        data = compose("train", overrides).data
        if data.get("_target_") != "batch_renorm.data.glyphs.Glyphs":
            exit_with(f"{data.get('_target_')} is not the embedded data set: choose scale=glyphs or one_letter")
        return instantiate(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="image file to write")
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="as train.py takes them")
    parser.add_argument("--split", choices=["train", "val"], default="train", help="default: train")
    parser.add_argument("--rows", type=int, default=8, help="default: 8")
    parser.add_argument("--columns", type=int, default=16, help="default: 16")
    parser.add_argument("--zoom", type=int, default=3, help="screen pixels a pixel (default: 3)")
    options = parser.parse_intermixed_args()
    page = sheet(source(options.overrides), options.split, options.rows, options.columns, options.zoom)
    try:
        page.save(options.out)
    except (OSError, ValueError) as error:
        exit_with(f"cannot write {options.out}: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
