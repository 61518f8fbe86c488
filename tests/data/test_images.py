"""Decoding, and the recipe's preparation of images, on small files of the kinds that ILSVRC has."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batch_renorm.data.augmentation import central_box, random_box
from batch_renorm.data.images import Images, decode
from batch_renorm.data.loaders import Division, Draw, TrainingPasses, training_loader
from batch_renorm.data.minibatches import LabelsTimesImages
from batch_renorm.errors import UserError
from tests.data.imagenet_files import cut_in_half, encoded, write_folders

CPU = torch.device("cpu")


def batch(source, indices, draw=None, split="train"):
    return source.images([source.fetch(split, np.asarray(indices), draw)], CPU)


def test_a_training_image_is_a_function_of_seed_step_worker_and_slot(folders):
    source = Images(str(folders), 32)
    once = batch(source, [0, 4], Draw(1, 2, 3))
    assert torch.equal(once, batch(source, [0, 4], Draw(1, 2, 3)))
    for other in (Draw(0, 2, 3), Draw(1, 0, 3), Draw(1, 2, 0)):
        assert not torch.equal(once, batch(source, [0, 4], other))
    twice = batch(source, [0, 0], Draw(1, 2, 3))
    assert torch.equal(twice[0], once[0])
    assert not torch.equal(twice[0], twice[1])  # another slot
    assert once.shape == (2, 3, 32, 32)
    assert -1 <= once.min() < once.max() <= 1
    together = batch(source, [0, 4, 8, 3], Draw(1, 2, 3, minibatch=2))  # a pass has each worker's images
    assert torch.equal(together, torch.cat([once, batch(source, [8, 3], Draw(1, 2, 4))]))


def test_evaluation_takes_the_central_part(folders):
    source = Images(str(folders), 32)
    got = source.images([source.fetch("val", np.array([1]), None)], CPU)[0]
    image = Image.open(source.files["val"].name(1)).resize((32, 32), Image.BILINEAR, box=(3.75, 5, 56.25, 75))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(got, expected, atol=2.1 / 255, rtol=0)  # one level of a decoder
    assert (got - expected).abs().mean() < 1e-3
    assert central_box(80, 60) == (5, 3.75, 75, 56.25)


def test_milder_crops_and_colours_as_they_are(folders):
    mild = Images(str(folders), 32, area=[0.35, 1.0], colours=False)
    assert mild.fetch("train", np.arange(4), Draw(0, 0, 0)).colours is None
    boxes = [random_box(np.random.default_rng(seed), 500, 375, mild.area) for seed in range(200)]
    parts = [(right - left) * (bottom - top) / (500 * 375) for left, top, right, bottom in boxes]
    assert 0.35 <= min(parts) < 0.45
    assert 0.9 < max(parts) <= 1
    with pytest.raises(UserError, match=r"data\.area is the smallest and the largest part"):
        Images(str(folders), 32, area=[0.5, 0.2])


def test_every_kind_of_file_decodes_as_pillow_does():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, which a camera noted and nobody makes
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"format": "PNG"},
                    {"exif": exif}):  # fmt: skip
        data = encoded(5, 81, 67, **options)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode(data).astype(int) - expected).max() <= 1, options


def test_loader_processes_give_the_same_images(folders, written):
    """Pickled, as where processes are not forked, and from a memory-mapped file."""
    source = Images(str(written["arrow"]), 32)
    regime = LabelsTimesImages(source.labels("train"), 4, 2)
    data = TrainingPasses(source, regime, Division(3), seed=0)
    expected = [source.images(part.fetched, CPU) for part in (data[0], data[1])]
    copy = pickle.loads(pickle.dumps(data))
    got = list(training_loader(copy, 0, 2, processes=1))
    assert all(torch.equal(source.images(p.fetched, CPU), e) for p, e in zip(got, expected, strict=True))
    (fetched,) = got[0].fetched
    assert fetched.pixels.shape == (12, 3, 32, 32)


def test_a_truncated_file_ends_the_run_by_its_name(tmp_path):
    source = Images(str(write_folders(tmp_path)), 32)
    name = source.files["train"].name(4)
    cut_in_half(name)
    data = TrainingPasses(source, lambda seed, step, worker: np.array([4]), Division(1), seed=0)
    for processes in (0, 1):
        with pytest.raises(UserError, match=f"^cannot read the image {name}: image file is truncated") as error:
            list(training_loader(data, 0, 1, processes=processes))
        assert "put another image of its label in its place" in str(error.value)
        assert "\n" not in str(error.value)
    Path(name).unlink()
    with pytest.raises(UserError, match=f"cannot read the image {name}: No such file or directory"):
        source.fetch("train", np.array([4]), None)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"classes": 1000}, r"has 4 classes, not 1,000 \(data.classes\)"),
        ({"train_images": 1281167}, r"has 12 train images, not 1,281,167 \(data.train_images\)"),
        ({"val_images": 50000}, "for another data set say data=folder"),
    ],
)
def test_a_data_set_that_is_not_the_one_asked_for_is_refused(folders, options, answer):
    with pytest.raises(UserError, match=answer):
        Images(str(folders), **({"size": 32} | options))


@pytest.mark.parametrize("kind", ["folders", "archives", "arrow"])
def test_a_part_of_the_labels_has_their_images_alone(folders, written, tmp_path, kind):
    """ImageNet-100 is the first 100 classes, or a list of 100."""
    root, names = str(folders if kind == "folders" else written[kind]), tmp_path / "list.txt"
    names.write_text("tabby\nchain saw\n" if kind == "arrow" else "n03000684 chain saw\n\nn02123045\n")
    whole = Images(root, 32)
    for chosen, taken in ((2, [0, 1]), (str(names), [1, 2])):
        part = Images(root, 32, classes=4, train_images=12, val_images=8, labels=chosen)
        assert part.classes == 2
        for split in ("train", "val"):
            rows = np.flatnonzero(np.isin(whole.labels(split), taken))
            assert part.labels(split).tolist() == [taken.index(label) for label in whole.labels(split)[rows]]
            for index, row in enumerate(rows.tolist()):
                assert part.files[split].read(index) == whole.files[split].read(row)
                assert part.files[split].name(index) == whole.files[split].name(row)
        assert torch.equal(batch(part, [4], Draw(0, 1, 2)), batch(whole, [3 * taken[1] + 1], Draw(0, 1, 2)))


@pytest.mark.parametrize(
    ("labels", "content", "answer"),
    [
        (0, None, "data.labels=0 must be at least 1 and at most 4"),
        (5, None, "data.labels=5 must be at least 1 and at most 4"),
        ("nowhere.txt", None, "cannot read .*nowhere.txt: No such file or directory; it must have the name"),
        ("list.txt", b"", "list.txt is empty: it must have the name of a class on each line"),
        ("list.txt", b"n02123045\nn99999999\n", "list.txt has the class n99999999, which is none of the 4 classes"),
        ("list.txt", b"\xff\xfen\x00\x00", "list.txt is not a list of classes, in UTF-8"),
    ],
)  # fmt: skip
def test_a_part_that_is_not_there_is_named(folders, tmp_path, labels, content, answer):
    if content is not None:
        (tmp_path / labels).write_bytes(content)
    with pytest.raises(UserError, match=answer) as error:
        Images(str(folders), 32, labels=labels if isinstance(labels, int) else str(tmp_path / labels))
    assert "\n" not in str(error.value)


def test_files_to_prepare_from_are_not_trained_on(written):
    with pytest.raises(ValueError, match=r"make a store of them with python scripts/prepare_imagenet.py"):
        Images(str(written["parquet"]), 32)
