"""Measure what batchnorm's groups tell a trained network, and how it uses this: figures/<scale>/mechanism.png.

    python scripts/mechanism.py runs/glyphs/*/seed0      writes mechanism.csv into each run folder
    python scripts/report.py                             draws them

For runs on the embedded data set, whose images show two letters; uses each run's newest readable checkpoint.

results/README.md derives the formula: batchnorm makes sqrt(m / k - 1) of what k of the m images of a group show. Two
measurements are made, both on the inference model normalised as in training:

- `company`: the same images in three groups. One more image of the group shows the label's letter, the other
  letter, or neither. The value is the percentage of correct answers.
- `output`: the mean output of channels that respond to a letter, in a norm layer of the head, when k images of the
  group show that letter.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from batch_renorm.data.glyphs import Glyphs
from batch_renorm.data.minibatches import EVALUATION, generator
from batch_renorm.errors import UserError
from batch_renorm.norm import training_normalization
from batch_renorm.norm.layers import has_layers
from batch_renorm.running.checkpoints import trained_model
from batch_renorm.running.cli import explained
from batch_renorm.training.distance import norm_outputs

COMPANIES = ("label again", "neither", "other again")  # which letter of an image one more image of its group shows
GROUPS = 16  # in the mean output, for each letter and k


class Row(NamedTuple):
    """A line of mechanism.csv: `at` is a company, or the number k of images; `theory` is sqrt(m / k - 1)."""

    measure: str
    at: str
    value: float
    theory: float | None = None


def measure(model: nn.Module, source: Glyphs, group: int, most: int = 4, images: int = 1000) -> list[Row]:
    """All rows of one model in evaluation mode, by `images` validation images of two letters.

    Args:
        group: of the model's norm layers.
        most: the largest k.
    """
    if source.others != 1:
        raise UserError(f"the mechanism is measured on images of two letters; these have {1 + source.others}")
    if not has_layers(model):
        raise UserError("the network's norms see no group: there is no mechanism to measure")
    val = Shown(source)
    fewest = min(map(len, val.showing))
    if fewest < max(most, 3):
        raise UserError(f"a letter is shown by {fewest} validation images, too few to measure: raise data.val_images")
    draw = generator(0, EVALUATION, 3)
    chosen = draw.permutation(np.flatnonzero(val.letters[:, 0] != val.letters[:, 1]))[:images]
    return [*company(model, val, chosen, group, draw), *outputs(model, val, group, most, draw)]


class Shown:
    """The validation images of a source, and the letters that each one shows."""

    def __init__(self, source: Glyphs) -> None:
        self.source = source
        keys = source.fetch("val", np.arange(len(source.labels("val"))))
        self.letters = source.shown(keys).numpy()  # (n, 2), the label's first
        self.showing = [np.flatnonzero((self.letters == letter).any(1)) for letter in range(source.classes)]

    def images(self, indices: np.ndarray) -> Tensor:
        drawn = self.source.images([self.source.fetch("val", indices)], torch.device("cpu"))
        return drawn.contiguous(memory_format=torch.channels_last)

    def without(self, letters: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        """Some images that show none of the letters."""
        rest = draw.permutation(len(self.letters))
        return rest[~np.isin(self.letters[rest], letters).any(1)][:count]


@torch.no_grad()
def company(model: nn.Module, val: Shown, chosen: np.ndarray, group: int, draw: np.random.Generator) -> Iterator[Row]:
    """Accuracy on the same images; one more image of the group shows the label's letter, the other one, or neither."""
    rights = np.zeros(len(COMPANIES))
    for image in chosen:
        label, other = val.letters[image]
        strangers = val.without(val.letters[image], group - 1, draw)
        groups = []
        for again, not_again in ((label, other), (None, None), (other, label)):
            beside = strangers
            if again is not None:
                partners = val.showing[again]
                partners = partners[(val.letters[partners, 0] == again) & (val.letters[partners] != not_again).all(1)]
                beside = np.append(strangers[:-1], draw.choice(partners[partners != image]))
            groups.append(np.insert(beside, 0, image))
        with training_normalization(model):
            answers = model(val.images(np.concatenate(groups)))[::group].argmax(1)
        rights += answers.numpy() == label
    for name, right in zip(COMPANIES, rights, strict=True):
        yield Row("company", name, 100 * right / len(chosen))


@torch.no_grad()
def outputs(model: nn.Module, val: Shown, group: int, most: int, draw: np.random.Generator) -> Iterator[Row]:
    """The outputs of the channels that respond to a letter, by the number of images in the group that show it."""
    layer, channels = specific_channels(model, val)
    values: dict[int, list[float]] = {k: [] for k in range(1, most + 1)}
    for letter, channel in enumerate(channels):
        strangers = val.without(np.array([letter]), len(val.letters), draw)
        for k, found in values.items():
            groups = [
                np.append(draw.choice(val.showing[letter], k, replace=False), draw.choice(strangers, group - k, False))
                for _ in range(GROUPS)
            ]
            with training_normalization(model):
                output = norm_outputs(model, val.images(np.concatenate(groups)))[layer]
            found.append(output.view(GROUPS, group, -1)[:, :k, channel].mean().item())
    for k, found in values.items():
        yield Row("output", str(k), float(np.mean(found)), (group / k - 1) ** 0.5)


@torch.no_grad()
def specific_channels(model: nn.Module, val: Shown) -> tuple[str, np.ndarray]:
    """The norm layer whose channels respond most to single letters, and each letter's channel in it.

    The response is the correlation between a channel's output at inference and whether the image shows the letter.
    Only layers with one position per image count.
    """
    indices = np.arange(0, len(val.letters), max(1, len(val.letters) // 3000))
    shows = np.stack([(val.letters[indices] == letter).any(1) for letter in range(len(val.showing))], 1).astype(float)
    shows = (shows - shows.mean(0)) / shows.std(0)
    found: dict[str, tuple[float, np.ndarray]] = {}
    for name, output in norm_outputs(model, val.images(indices)).items():
        if output.dim() == 4 and output.shape[2:] != (1, 1):
            continue
        values = output.flatten(1).double().numpy()
        spread = values.std(0)
        answers = shows.T @ ((values - values.mean(0)) / np.maximum(spread, 1e-9)) / len(indices)  # (letters, channels)
        found[name] = answers.max(1).mean(), answers.argmax(1)
    layer = max(found, key=lambda name: found[name][0])
    return layer, found[layer][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="FOLDER", help="run folders")
    parser.add_argument("--images", type=int, default=1000, help="validation images to look at (default: 1000)")
    options = parser.parse_args()
    for folder in options.runs:
        run, model, _ = trained_model(folder)
        if not isinstance(run.source, Glyphs):
            raise UserError(f"{folder} has no images of letters: the mechanism is measured on the embedded data set")
        if not has_layers(model):
            print(f"{folder}: no layer reads the group, so there is nothing to measure")
            continue
        rows = measure(model, run.source, run.minibatch.group, images=options.images)
        with (folder / "mechanism.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows(
                (r.measure, r.at, f"{r.value:.6g}", "" if r.theory is None else f"{r.theory:.6g}") for r in rows
            )
        print(folder / "mechanism.csv")
        for row in rows:
            print(f"  {row.measure} {row.at}: {row.value:.4g}")


if __name__ == "__main__":
    with explained():
        main()
