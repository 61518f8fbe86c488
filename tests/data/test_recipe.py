"""The recipe to the letter: crops and colours against TensorFlow's own operations (tensorflow_numbers.py made them)."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import ks_2samp

from batch_renorm.data.augmentation import distort, random_box, resized
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def tensorflow():
    return json.loads((ROOT / "tests/data/tensorflow.json").read_text())


class TensorFlowsNumbers:
    """The random numbers of a TensorFlow kernel with two seeds: Philox 4x32-10, as SimplePhilox hands them out.

    After tensorflow/core/lib/random: philox_random.h, exact_uniform_int.h.
    """

    def __init__(self, seed, seed2):
        self.key, self.counter, self.left = (seed, 0), [0, 0, seed2, 0], []

    def bits(self):
        if not self.left:
            (a, b, c, d), (k, m) = self.counter, self.key
            for _ in range(10):
                first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
                a, b, c, d = second >> 32 ^ b ^ k, second & 0xFFFFFFFF, first >> 32 ^ d ^ m, first & 0xFFFFFFFF
                k, m = k + 0x9E3779B9 & 0xFFFFFFFF, m + 0xBB67AE85 & 0xFFFFFFFF
            self.left = [a, b, c, d]
            self.counter[0] += 1
        return self.left.pop(0)

    def uniform(self, low, high):
        number = np.uint32(127 << 23 | self.bits() & 0x7FFFFF).view(np.float32) - np.float32(1)
        return float(number * (np.float32(high) - np.float32(low)) + np.float32(low))

    def integers(self, count):
        if count & (count - 1) == 0:
            return self.bits() & (count - 1)
        while (number := self.bits()) < 0xFFFFFFFF % count + 1:
            pass
        return number % count


def test_crops_are_tensorflows_given_its_random_numbers(tensorflow):
    rows = tensorflow["crops"]
    ours = [[*random_box(TensorFlowsNumbers(7, seed), width, height)] for width, height, seed, *_ in rows]
    assert len(rows) == 480
    assert ours == [row[3:] for row in rows]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (100, 400), (299, 299)])
def test_crops_are_distributed_as_tensorflows(tensorflow, width, height):
    rng = np.random.default_rng(0)
    ours = np.array([random_box(rng, width, height) for _ in range(2000)]).T
    theirs = np.array([row[3:] for row in tensorflow["crops"] if row[:2] == [width, height]]).T
    for of in (lambda x, y, right, low: (right - x) * (low - y), lambda x, y, right, low: (right - x) / (low - y),
               lambda x, y, right, low: low - y, lambda x, *_: x, lambda _, y, *__: y):  # fmt: skip
        assert ks_2samp(of(*ours), of(*theirs)).pvalue > 0.005


def test_antialiasing_changes_values_by_half_a_level_as_docs_imagenet_says():
    photograph = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    pixels = np.array(photograph.resize((427, 500), Image.Resampling.LANCZOS))
    numbers = np.random.Generator(np.random.Philox(0))
    changes = []
    for _ in range(100):
        left, top, right, bottom = random_box(numbers, 427, 500)
        crop = pixels[top:bottom, left:right]
        plain = F.interpolate(
            torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float(), size=(299, 299), mode="bilinear"
        )
        changes.append((resized(crop, 299) - plain.round()).abs())
    changes = torch.cat(changes)
    assert 0.4 < changes.mean() < 0.55
    assert 1 / 280 < (changes > 8).float().mean() < 1 / 180


def test_colours_are_tensorflows(tensorflow):
    found = {name: np.array(values, np.float32) for name, values in tensorflow["colours"].items()}
    images = torch.from_numpy(found["images"]).permute(0, 3, 1, 2)
    ours = distort(images, torch.from_numpy(found["draws"])).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - found["results"]).max() < 2e-5
