"""Draw a sheet of the embedded data set's images: `python scripts/contact_sheet.py glyphs.png`."""

import argparse
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from batch_renorm.data.glyphs import Glyphs

CONFIG = Path(__file__).parent.parent / "configs" / "data" / "glyphs.yaml"


def sheet(source: Glyphs, split: str, labels: int, images: int, zoom: int) -> Image.Image:
    """A row per label, spread over all labels, with `images` images of each."""
    starts = np.linspace(0, source.classes - 1, labels).astype(int) * source.images_per_label[split]
    indices = (starts[:, None] + np.arange(images)).reshape(-1)
    drawn = source.images([source.fetch(split, indices)], torch.device("cpu"))
    grey = (drawn * 80 + 128).clamp(0, 255).to(torch.uint8)
    size = source.size
    page = grey.view(labels, images, size, size).permute(0, 2, 1, 3).reshape(labels * size, images * size)
    return Image.fromarray(page.numpy()).resize((images * size * zoom, labels * size * zoom), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="image file to write")
    parser.add_argument("--split", choices=["train", "val"], default="train")
    parser.add_argument("--labels", type=int, default=16, help="rows")
    parser.add_argument("--images", type=int, default=24, help="columns")
    parser.add_argument("--zoom", type=int, default=2, help="screen pixels a pixel")
    options = parser.parse_args()
    settings = {name: value for name, value in yaml.safe_load(CONFIG.read_text()).items() if name != "_target_"}
    sheet(Glyphs(**settings), options.split, options.labels, options.images, options.zoom).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
