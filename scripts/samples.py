"""A page of training images as the network sees them.

    python scripts/samples.py page.png scale=imagenet data.root=/path/to/imagenet
    python scripts/samples.py page.png scale=one_letter      images of the embedded data set

Each row is a label: first the image prepared for evaluation, then as in the minibatches of the first steps. The
options are those of train.py.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.utils import save_image

from batch_renorm.data.loaders import Draw, Source
from batch_renorm.errors import UserError
from batch_renorm.running.cli import CONFIGS, as_hydra_reads, explained
from batch_renorm.running.schema import arguments_of_target, target

ROWS, COLUMNS = 6, 8


def samples(source: Source, seed: int) -> list[Tensor]:
    """For each of ROWS labels, evenly spaced, one image in COLUMNS preparations; values from 0 to 1."""
    labels = source.labels("train")
    chosen = np.linspace(0, source.classes - 1, ROWS).astype(int)
    indices = np.array([np.argmax(labels == label) for label in chosen])
    draws = [None, *(Draw(seed, step, worker=0) for step in range(COLUMNS - 1))]
    columns = [source.images([source.fetch("train", indices, draw)], torch.device("cpu")) for draw in draws]
    return [shown(column[row]) for row in range(ROWS) for column in columns]


def shown(image: Tensor) -> Tensor:
    """From values in [-1, 1]; letters, whose light has no upper end, as bright as they are."""
    if len(image) == 1:
        return (image / image.quantile(0.999)).clamp(0, 1) ** 0.5  # a screen's gamma: dark images stay legible
    return (image + 1) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE", help="image file to write")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="options of train.py")
    options = parser.parse_intermixed_args()
    if "=" in options.out.name:
        raise UserError("say where the page goes: python scripts/samples.py page.png scale=imagenet data.root=...")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", as_hydra_reads(options.overrides)), resolve=True)
    assert isinstance(config, dict)
    source: Source = target(config["data"], "data")(**arguments_of_target(config["data"], "data"))
    save_image(samples(source, config["seed"]), options.out, nrow=COLUMNS, padding=4, pad_value=1)
    print(options.out)


if __name__ == "__main__":
    with explained():
        main()
