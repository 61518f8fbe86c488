"""The embedded data set: an image is a function of (split, index), however it is asked for."""

import numpy as np
import pytest
import torch

from batch_renorm.data import glyphs
from batch_renorm.data.glyphs import ALIKE, Glyphs, letters
from batch_renorm.data.hashing import mix, uniform
from batch_renorm.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(glyph_options):
    return Glyphs(**glyph_options)


def draw(source, split, indices):
    return source.images([source.fetch(split, np.asarray(indices))], CPU)


def test_an_image_is_the_same_alone_and_in_any_batch_and_another_than_others(source):
    together = draw(source, "train", [5, 900, 17, 2000])
    for row, index in enumerate([5, 900, 17, 2000]):
        torch.testing.assert_close(draw(source, "train", [index])[0], together[row], rtol=0, atol=1e-6)
    parts = source.images([source.fetch("train", np.array([5, 900])), source.fetch("train", np.array([17]))], CPU)
    torch.testing.assert_close(parts, together[:3], rtol=0, atol=1e-6)
    assert together.shape == (4, 1, source.size, source.size)
    assert not torch.equal(draw(source, "val", [5])[0], together[0])
    assert not torch.equal(together[0], together[1])


def bare(options, **changes):
    """Letters alone: nothing but their place, pair and contrast varies."""
    still = {"rotation": 0.0, "stretch": 0.0, "jitter": 0.0, "exposure": 0.0, "noise": 0.0}
    return Glyphs(**(options | still | changes))


def strengths(source, images):
    """How strongly each corner of an image shows each letter, (n, 4 corners, letters)."""
    half = source.size // 2
    corners = images.unfold(2, half, half).unfold(3, half, half).reshape(len(images), 4, -1)
    middle = source.templates[:, None, 8:24, 8:24]  # a letter at half its template's size fills a corner
    shapes = torch.nn.functional.interpolate(middle, (half, half), mode="bilinear", align_corners=False).flatten(1)
    shapes = shapes - shapes.mean(1, keepdim=True)
    return corners @ (shapes / shapes.norm(dim=1, keepdim=True)).T


def test_an_image_shows_its_letters_in_different_corners_and_the_label_is_usually_the_bolder(glyph_options):
    """Of 100 images 74 have the larger contrast on the label: P(a > b) for a in 0.6..1.2 and b in 0.3..1.1."""
    source = bare(glyph_options)
    indices = np.random.default_rng(0).integers(len(source.labels("train")), size=2000)
    found, where = strengths(source, draw(source, "train", indices)).max(2).values.sort(1, descending=True)
    assert (found[:, 2] < 0.3 * found[:, 1]).float().mean() > 0.9  # two corners, no third
    letters_ = strengths(source, draw(source, "train", indices)).argmax(2).gather(1, where)
    shown = source.shown(source.fetch("train", indices))
    assert torch.equal(shown[:, 0], torch.from_numpy(source.labels("train")[indices]))
    both = (letters_[:, :2].sort(1).values == shown.sort(1).values).all(1)
    assert both.float().mean() > 0.9
    bolder = (letters_[:, 0] == shown[:, 0])[both & (shown[:, 0] != shown[:, 1])]
    assert bolder.float().mean().item() == pytest.approx(0.74, abs=0.04)


def test_with_no_other_letter_an_image_shows_its_label_alone(glyph_options):
    source = bare(glyph_options, others=0)
    indices = np.random.default_rng(0).integers(len(source.labels("val")), size=500)
    found = strengths(source, draw(source, "val", indices))
    strongest = found.flatten(1).argmax(1) % source.classes
    assert (strongest.numpy() == source.labels("val")[indices]).mean() > 0.97


def test_exposure_multiplies_the_light_of_whole_images(glyph_options):
    """By 2 to the power of up to so many stops, either way."""
    indices = np.arange(0, 2000, 4)
    same = draw(bare(glyph_options), "val", indices)
    exposed = draw(bare(glyph_options, exposure=2.0), "val", indices)
    ink = same > 0.1
    stops = torch.where(ink, (exposed / same.clamp_min(1e-9)).clamp_min(1e-9).log2(), 0.0).flatten(1)
    mean = stops.sum(1) / ink.flatten(1).sum(1)
    assert (stops - mean[:, None])[ink.flatten(1)].abs().max() < 1e-3  # all of an image alike
    assert -2 <= mean.min() < -1.9
    assert 1.9 < mean.max() <= 2
    assert abs(mean.mean().item()) < 0.2


def test_letters_are_stable_and_look_unlike(monkeypatch):
    """No accents, and no two of which one could be taken for the other."""
    names, shapes = letters(200)
    assert len(set(names)) == 200
    assert names[:24] == letters(24)[0]
    coarse = torch.nn.functional.avg_pool2d(shapes[:, None], 2).flatten(1)
    alike = torch.corrcoef(coarse) - torch.eye(200)
    assert alike.max() <= ALIKE + 1e-4
    assert not {"u", "\u00fc"} <= set(names)
    monkeypatch.setattr(glyphs, "_plain_letters", lambda file: "ABC")
    with pytest.raises(UserError, match=r"the DejaVu fonts have \d letters that look unlike; 50 labels were asked"):
        letters(50)


def test_hash_is_a_bijection_with_uniform_numbers():
    assert len(mix(torch.arange(1 << 18, dtype=torch.int32)).unique()) == 1 << 18
    for bits in (1, 77, 0x80000000, 0xDEADBEEF, 0xFFFFFFFF):  # in Python's integers, which do not wrap
        wanted = (bits ^ bits >> 16) * 0x7FEB352D % (1 << 32)
        wanted = (wanted ^ wanted >> 15) * 0x846CA68B % (1 << 32)
        assert mix(torch.tensor([bits]).int()).item() % (1 << 32) == wanted ^ wanted >> 16
    numbers = uniform(torch.arange(1000), 1000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean().item() - 0.5) < 0.002
    histogram = torch.histc(numbers, 100, 0, 1)
    assert ((histogram - 10_000).abs() < 5 * 100).all()
    for these, others in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([these.flatten(), others.flatten()]))[0, 1]) < 0.005
    assert torch.equal(uniform(torch.arange(1000), 3), numbers[:, :3])
