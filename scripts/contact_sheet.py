"""Draw a sheet of the embedded data set's images, their labels below: `python scripts/contact_sheet.py glyphs.png`."""

import argparse
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont

from batch_renorm.data.glyphs import Glyphs, font_files

CONFIGS = Path(__file__).parent.parent / "configs" / "data"
GAP, CAPTION = 4, 14  # screen pixels between images, and for the label below one


def sheet(source: Glyphs, split: str, rows: int, columns: int, zoom: int) -> Image.Image:
    """Images spread evenly over the split, row by row; under each one the letter that its label names."""
    indices = np.linspace(0, len(source.labels(split)) - 1, rows * columns).astype(int)
    drawn = source.images([source.fetch(split, indices)], torch.device("cpu"))[:, 0]
    light = (drawn / drawn.quantile(0.999)).clamp(0, 1) ** 0.5  # as a screen shows light: dark images stay legible
    grey = (light * 255).to(torch.uint8).numpy()
    side = source.size * zoom
    page = Image.new("L", (columns * (side + GAP) + GAP, rows * (side + CAPTION + GAP) + GAP), 255)
    pen, font = ImageDraw.Draw(page), ImageFont.truetype(str(font_files()[0]), CAPTION - 2)
    for place, (image, label) in enumerate(zip(grey, source.labels(split)[indices], strict=True)):
        left, top = GAP + place % columns * (side + GAP), GAP + place // columns * (side + CAPTION + GAP)
        page.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (left, top))
        pen.text((left + side / 2, top + side), source.letters[label], fill=0, font=font, anchor="ma")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="image file to write")
    parser.add_argument("--data", choices=sorted(file.stem for file in CONFIGS.glob("glyphs*.yaml")), default="glyphs")
    parser.add_argument("--split", choices=["train", "val"], default="train")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--zoom", type=int, default=3, help="screen pixels a pixel")
    options = parser.parse_args()
    config = yaml.safe_load((CONFIGS / f"{options.data}.yaml").read_text())
    settings = {name: value for name, value in config.items() if name not in ("_target_", "defaults")}
    sheet(Glyphs(**settings), options.split, options.rows, options.columns, options.zoom).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
