"""The embedded data set: an image is a function of (split, index), however it is asked for."""

import numpy as np
import pytest
import torch

from batch_renorm.data.glyphs import Glyphs, templates
from batch_renorm.data.hashing import mix, uniform

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(glyph_options):
    return Glyphs(**glyph_options)


def draw(source, split, indices):
    return source.images([source.fetch(split, np.asarray(indices))], CPU)


def test_image_is_the_same_alone_and_in_any_batch(source):
    together = draw(source, "train", [5, 900, 17, 2000])
    for row, index in enumerate([5, 900, 17, 2000]):
        torch.testing.assert_close(draw(source, "train", [index])[0], together[row], rtol=0, atol=1e-6)
    parts = source.images([source.fetch("train", np.array([5, 900])), source.fetch("train", np.array([17]))], CPU)
    torch.testing.assert_close(parts, together[:3], rtol=0, atol=1e-6)


def test_splits_and_indices_differ(source):
    assert not torch.equal(draw(source, "train", [3]), draw(source, "val", [3]))
    assert not torch.equal(draw(source, "train", [3]), draw(source, "train", [4]))


def test_shapes_and_labels(source, glyph_options):
    size = glyph_options["size"]
    assert draw(source, "val", [0, 1]).shape == (2, 1, size, size)
    labels = source.labels("train")
    assert len(labels) == glyph_options["labels"] * glyph_options["train_images"]
    assert (np.bincount(labels) == glyph_options["train_images"]).all()


def test_an_image_shows_its_label(source):
    """Matched against every template in mean pose, an image finds its own far more often than by chance."""
    n = 400
    indices = np.random.default_rng(0).integers(len(source.labels("train")), size=n)
    images = draw(source, "train", indices).flatten(1)
    size = source.size
    reference = torch.nn.functional.interpolate(source.templates[:, None], (size, size), mode="area").flatten(1)
    reference = reference - reference.mean(1, keepdim=True)
    match = (images @ reference.T).abs() / reference.norm(dim=1)
    found = match.argmax(1).numpy() == source.labels("train")[indices]
    assert found.mean() > 10 / source.classes


def test_templates_are_distinct_and_stable():
    many = templates(1000)
    assert len({tuple(image.flatten().tolist()) for image in many}) == 1000
    assert torch.equal(templates(50), many[:50])
    with pytest.raises(ValueError, match=r"labels were asked for"):
        templates(1_000_000)


def test_hash_is_a_bijection_with_uniform_numbers():
    assert len(mix(torch.arange(1 << 18)).unique()) == 1 << 18
    numbers = uniform(torch.arange(1000), 0, 1000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean().item() - 0.5) < 0.002
    histogram = torch.histc(numbers, 100, 0, 1)
    assert ((histogram - 10_000).abs() < 5 * 100).all()
    other = uniform(torch.arange(1000), 1, 1000)
    assert abs(torch.corrcoef(torch.stack([numbers.flatten(), other.flatten()]))[0, 1]) < 0.005
    shifted = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1]
    assert abs(shifted) < 0.005
