"""torchvision's data sets by name, from files in their own formats; nothing is downloaded."""

import pickle
import struct
import urllib.error

import numpy as np
import pytest
import torch
import torchvision.datasets

from batch_renorm.data.loaders import Draw
from batch_renorm.data.torchvision_sets import TorchvisionSet
from batch_renorm.errors import UserError
from batch_renorm.running.schema import checked

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
PIXELS = {"train": RNG.integers(0, 256, (20, 3072), dtype=np.uint8), "test": RNG.integers(0, 256, (8, 3072), np.uint8)}


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """CIFAR-100's pickles; their checksums are of the true ones."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for split, pixels in PIXELS.items():
        labels = [i % 4 for i in range(len(pixels))]
        (folder / split).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c", "d"]}))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5: True)
    return tmp_path


def batch(source, split, indices, draw=None):
    return source.images([source.fetch(split, np.asarray(indices), draw)], CPU)


def test_images_are_those_of_the_files(cifar100):
    source = TorchvisionSet("CIFAR100", str(cifar100), 4, True)
    assert (source.classes, source.channels) == (4, 3)
    assert source.labels("val").tolist() == [0, 1, 2, 3] * 2
    for split, name in (("train", "train"), ("val", "test")):
        expected = torch.from_numpy(PIXELS[name]).view(-1, 3, 32, 32) / 127.5 - 1
        torch.testing.assert_close(batch(source, split, [3, 0, 7]), expected[[3, 0, 7]])


def test_a_training_image_is_moved_and_mirrored_by_its_place_in_the_run(cifar100):
    source = TorchvisionSet("CIFAR100", str(cifar100), 4, True)
    images = batch(source, "train", [5] * 60, Draw(0, 1, 2))
    assert torch.equal(images, batch(source, "train", [5] * 60, Draw(0, 1, 2)))
    next_worker = batch(source, "train", [5] * 60, Draw(0, 1, 1, minibatch=30))[30:]
    assert torch.equal(images[:30], next_worker)
    assert not torch.equal(images, batch(source, "train", [5] * 60, Draw(0, 2, 2)))
    original = torch.nn.functional.pad(batch(source, "train", [5])[0], [4] * 4, value=-1.0)
    windows = torch.stack([whole.unfold(1, 32, 1).unfold(2, 32, 1) for whole in (original, original.flip(2))])
    windows = windows.permute(0, 2, 3, 1, 4, 5)  # side, y, x: an image
    places = torch.cat([(windows == image).flatten(3).all(3).nonzero() for image in images])
    assert len(places) == len(images)  # each in one place
    assert [len(column.unique()) > least for column, least in zip(places.T, (1, 5, 5), strict=True)] == [True] * 3


def test_mnist_like_sets_have_one_channel(tmp_path):
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 6), ("t10k", 4)):
        pixels, labels = RNG.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 3
        for name, header, data in (
            (f"{split}-images-idx3-ubyte", struct.pack(">4i", 2051, count, 28, 28), pixels),
            (f"{split}-labels-idx1-ubyte", struct.pack(">2i", 2049, count), labels),
        ):
            (raw / name).write_bytes(header + data.tobytes())
    source = TorchvisionSet("FashionMNIST", str(tmp_path), 0, False)
    assert (source.channels, source.classes) == (1, 3)
    assert batch(source, "val", [0, 3]).shape == (2, 1, 28, 28)


def test_a_download_that_fails_is_one_clear_line(tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "download", offline)
    with pytest.raises(
        ValueError, match=r"cannot get CIFAR100 into data.root=.*: Name or service not known; get it"
    ) as error:
        TorchvisionSet("CIFAR100", str(tmp_path), 4, True)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^data.name must be 'CIFAR10', 'CIFAR100', 'MNIST', .* got 'CIFAR1000'$"):
        checked(TorchvisionSet, {"name": "CIFAR1000", "root": ".", "shift": 4, "mirrored": True}, "data")
