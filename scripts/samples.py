"""A page of training images as the network sees them.

    python scripts/samples.py page.png scale=imagenet data.root=/path/to/imagenet
    python scripts/samples.py page.png scale=one_letter      images of the embedded data set

Each row is a label: first the image prepared for evaluation, then as in the minibatches of the first steps. The
options are those of train.py.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from batch_renorm.data.loaders import Draw, Source
from batch_renorm.errors import UserError
from batch_renorm.running.cli import CONFIGS, as_hydra_reads, explained
from batch_renorm.running.schema import arguments_of_target, target

ROWS, COLUMNS, GAP = 6, 8, 4


def page(source: Source, seed: int) -> Image.Image:
    """ROWS of all labels, evenly spaced, with one image of each in COLUMNS preparations."""
    labels = source.labels("train")
    starts = [int(np.argmax(labels == label)) for label in np.linspace(0, source.classes - 1, ROWS).astype(int)]
    indices = np.array(starts)
    draws = [None, *(Draw(seed, step, worker=0) for step in range(COLUMNS - 1))]
    columns = [source.images([source.fetch("train", indices, draw)], torch.device("cpu")) for draw in draws]
    size = source.size + GAP
    sheet = Image.new("RGB", (COLUMNS * size - GAP, ROWS * size - GAP), "white")
    for x, column in enumerate(columns):
        for y, image in enumerate(column):
            sheet.paste(picture(image), (x * size, y * size))
    return sheet


def picture(image: Tensor) -> Image.Image:
    """A picture of values in [-1, 1]; letters, whose light has no upper end, as bright as they are."""
    if len(image) == 1:
        image = 2 * (image / image.quantile(0.999)).clamp(0, 1) ** 0.5 - 1  # a screen's gamma: dark images stay legible
    levels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.repeat(levels, 3 // levels.shape[2], 2))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="image file to write")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="options of train.py")
    options = parser.parse_intermixed_args(arguments)
    if "=" in options.out.name:
        raise UserError("say where the page goes: python scripts/samples.py page.png scale=imagenet data.root=...")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", as_hydra_reads(options.overrides)), resolve=True)
    assert isinstance(config, dict)
    source: Source = target(config["data"], "data")(**arguments_of_target(config["data"], "data"))
    page(source, config["seed"]).save(options.out)
    print(options.out)


if __name__ == "__main__":
    with explained():
        main(sys.argv[1:])
