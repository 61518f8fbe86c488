"""The real data set's folders and the recipe's preparation, on small images made here."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from batch_renorm.data.imagenet import ImageNet, central_box, distort, hsv_to_rgb, random_box, rgb_to_hsv
from batch_renorm.data.loaders import Draw

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, images in (("train", 3), ("val", 2)):
        for wnid in ("n02", "n01"):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{wnid}_{number}.JPEG", quality=95)
    return root


def test_labels_follow_sorted_class_names(root):
    source = ImageNet(str(root), 32)
    assert source.classes == 2
    assert source.labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    assert "n01" in source.files["train"][0]


def test_a_training_image_is_a_function_of_seed_step_worker_and_slot(root):
    source = ImageNet(str(root), 32)

    def images(indices, *draw):
        return source.images([source.fetch("train", np.array(indices), Draw(*draw))], CPU)

    once = images([0, 4], 1, 2, 3)
    assert torch.equal(once, images([0, 4], 1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(once, images([0, 4], *other))
    twice = images([0, 0], 1, 2, 3)
    assert torch.equal(twice[0], once[0])
    assert not torch.equal(twice[0], twice[1])  # another slot
    assert once.shape == (2, 3, 32, 32)
    assert once.min() >= -1
    assert once.max() <= 1


def test_evaluation_takes_the_central_part(root):
    source = ImageNet(str(root), 32)
    got = source.images([source.fetch("val", np.array([1]), None)], CPU)[0]
    image = Image.open(source.files["val"][1]).convert("RGB").resize((32, 32), Image.BILINEAR, box=(5, 3.75, 75, 56.25))
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert central_box(80, 60) == (5, 3.75, 75, 56.25)


def test_crops_have_the_recipes_areas_and_aspects():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 500, 375) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / (500 * 375), width / height
    assert area.min() > 0.045
    assert area.max() <= 1
    assert aspect.min() > 0.74
    assert aspect.max() < 1.36
    assert (boxes >= 0).all()
    assert boxes[:, 2].max() <= 500
    assert boxes[:, 3].max() <= 375
    assert abs(area.mean() - 0.47) < 0.05  # nearly uniform in 0.05 .. 1, large ones fit less often


def test_hsv_agrees_with_the_standard_library():
    colours = torch.rand(1, 3, 10, 50, generator=torch.Generator().manual_seed(0)).double()
    colours[..., 0] = 0.3  # greys
    hsv = rgb_to_hsv(colours)
    for i in range(10):
        for j in range(50):
            expected = colorsys.rgb_to_hsv(*colours[0, :, i, j].tolist())
            assert hsv[0, :, i, j].tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(hsv_to_rgb(hsv), colours)


def test_distortion_without_change_is_the_identity():
    images = torch.rand(2, 3, 8, 8) * 0.8 + 0.1
    neutral = torch.tensor([[0.1, 0.5, 0.5, 0.5, 0.5], [0.9, 0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(distort(images, neutral), images, atol=1e-5, rtol=0)
    contrast = torch.tensor([[0.1, 0.5, 0.5, 0.5, 0.0], [0.9, 0.5, 0.5, 0.5, 0.0]])
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(distort(images, contrast), (images + mean) / 2, atol=1e-5, rtol=0)


def test_what_is_wrong_is_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"no ImageNet at data.root=.*nowhere: looked for"):
        ImageNet(str(tmp_path / "nowhere"), 32)
    for split in ("train", "val"):
        (tmp_path / split / "n01").mkdir(parents=True)
        (tmp_path / split / "n01" / "a.JPEG").write_bytes(b"not an image")
    source = ImageNet(str(tmp_path), 32)
    with pytest.raises(ValueError, match=r"cannot read the image .*train/n01/a.JPEG"):
        source.fetch("train", np.array([0]), None)
    (tmp_path / "val" / "n09").mkdir()
    with pytest.raises(ValueError, match="has the class n09, which"):
        ImageNet(str(tmp_path), 32)
