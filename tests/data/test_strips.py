"""JPEGs in strips: the same pixels, of which a part is decoded without the rest."""

import io
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from batch_renorm.data import regions, store, strips
from batch_renorm.data.augmentation import random_box
from batch_renorm.data.decoding import decode
from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Draw
from batch_renorm.data.sources import find
from tests.data.imagenet_files import cut_in_half
from tests.data.test_regions import IN_PART, WHOLE, damaged, jpeg, picture, whole_and_part

pytestmark = pytest.mark.skipif(
    shutil.which(strips.PROGRAM) is None, reason=f"needs {strips.PROGRAM}: {strips.INSTALL}"
)
PROGRESSIVE = {"progressive": lambda p: jpeg(p, progressive=True, subsampling=2)}
LEFT = [kind for kind in WHOLE if kind not in ("progressive", "bytes behind it", "lacking scans")]


@pytest.mark.parametrize("kind", [*IN_PART, *PROGRESSIVE])
def test_a_part_is_that_of_the_file_it_was_made_of(kind, monkeypatch):
    """Without nvImageCodec, and without decoding the whole."""
    rng = np.random.default_rng(len(kind))
    monkeypatch.setattr(regions, "codec", lambda: None)
    cut = 0
    for trial in range(20):
        width, height = (int(n) for n in (rng.integers(1, 300 if trial % 2 else 60, 2) if trial else (1, 1)))
        data = (IN_PART | PROGRESSIVE)[kind](picture(rng, width, height))
        made, whole = strips.in_strips(data), decode(data)
        np.testing.assert_array_equal(decode(made), whole, strict=True)
        described = strips.strips_of(made)
        boxes = [random_box(rng, width, height) for _ in range(4)]
        for _ in range(12):
            left, top = int(rng.integers(width)), int(rng.integers(height))
            boxes.append((left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1))
        for left, top, right, bottom in [*boxes, (0, 0, width, height)]:
            expected = whole[top:bottom, left:right]
            np.testing.assert_array_equal(
                strips.part(made, described, (left, top, right, bottom)), expected, strict=True
            )
            with monkeypatch.context() as patch:
                patch.setattr(regions, "decode", lambda data: pytest.fail("decoded whole"))
                found = regions.decode_part(made, lambda w, h, box=(left, top, right, bottom): box)
            np.testing.assert_array_equal(found, expected, strict=True)
            cut += 1
    assert cut == 20 * 17


def test_only_the_part_is_read(monkeypatch):
    """Of a tenth of an image, the decoder gets no more than a fifth of the bytes."""
    made = strips.in_strips(jpeg(picture(np.random.default_rng(0), 500, 375), subsampling=2))
    seen = []
    decoded = strips.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        strips.simplejpeg, "decode_jpeg", lambda data, to: (seen.append(len(data)), decoded(data, to))[1]
    )
    found = strips.strips_of(made)
    assert (found.width, found.height, found.wide, found.tall, found.across) == (500, 375, 32, 16, 16)
    assert strips.part(made, found, (200, 150, 360, 267)).shape == (117, 160, 3)
    assert seen[0] < len(made) / 5


def test_files_grow_by_a_few_percent_at_most():
    rng = np.random.default_rng(1)
    for subsampling in (0, 2):
        data = jpeg(picture(rng, 500, 375), subsampling=subsampling)
        assert len(strips.in_strips(data)) < 1.05 * len(data)


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_no_such_jpeg_stays_as_it_is(kind):
    data = WHOLE[kind](picture(np.random.default_rng(0), 90, 70))
    assert strips.in_strips(data) == data


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"no image", jpeg(picture(np.random.default_rng(0), 90, 70))[:900]])
def test_what_cannot_be_read_stays_as_it_is(data):
    assert strips.in_strips(data) == data


def test_other_pixels_are_not_written(monkeypatch):
    data = jpeg(picture(np.random.default_rng(0), 90, 70))
    monkeypatch.setattr(strips, "decode", lambda given: np.array(len(given)))
    assert strips.in_strips(data) == data


def test_restart_markers_alone_are_no_strips():
    assert strips.strips_of(jpeg(picture(np.random.default_rng(0), 100, 64), restart_marker_blocks=1)) is None


def test_the_comment_of_another_file_is_not_believed():
    """As where a program has written the codes anew and kept the comment."""
    rng = np.random.default_rng(0)
    one, other = (strips.in_strips(jpeg(picture(rng, 90, 70), subsampling=2)) for _ in range(2))
    comment, header = strips.strips_of(one).header_at, strips.strips_of(other).header_at
    mixed = one[:comment] + other[header:]
    found = strips.strips_of(mixed)
    assert found is not None
    assert strips.part(mixed, found, (20, 20, 50, 50)) is None
    np.testing.assert_array_equal(
        regions.decode_part(mixed, lambda w, h: (20, 20, 50, 50)), decode(other)[20:50, 20:50]
    )


def test_a_file_in_strips_stays_as_it_is():
    made = strips.in_strips(jpeg(picture(np.random.default_rng(0), 90, 70)))
    assert strips.in_strips(made) == made


def test_damage_is_refused_or_shows_in_pixels_and_never_in_other_places():
    """The whole is refused if the part is not; or the part has the pixels of the whole, damaged or as they were."""
    rng = np.random.default_rng(0)
    outcomes = Counter()
    for trial in range(400):
        whole = strips.in_strips(jpeg(picture(rng, 90, 80), subsampling=trial % 3))
        before = strips.strips_of(whole).codes_at if trial % 2 else -2  # every second time in the header alone
        expected, part = whole_and_part(damaged(whole, rng, trial, before))
        if isinstance(expected, str):
            outcomes["refused" if isinstance(part, str) else "outside of the part"] += 1
            assert not isinstance(part, str) or part == expected
        else:
            assert part.shape == expected.shape
            outcomes["as the whole" if np.array_equal(part, expected) else "other damage"] += 1
    assert outcomes["refused"] > 20
    assert outcomes["as the whole"] > 200
    assert outcomes["other damage"] < 5
    assert outcomes["outside of the part"] < 40


def in_strips(source, target):
    return store.prepare(find(source), target, 5, 1, lambda images: None, in_strips=True)


def test_a_store_in_strips_trains_on_the_same_pixels(folders, tmp_path):
    in_strips(folders, tmp_path / "strips")
    plain, cut = Images(str(folders), 32), Images(str(tmp_path / "strips"), 32)
    indices = np.arange(12)
    assert sum(cut.files["train"].read(i) != plain.files["train"].read(i) for i in indices) == 10  # not PNG and CMYK
    for step in range(5):
        ours, theirs = (source.fetch("train", indices, Draw(0, step, 0)) for source in (cut, plain))
        assert torch.equal(ours.pixels, theirs.pixels)
    assert torch.equal(cut.fetch("val", np.arange(8), None).pixels, plain.fetch("val", np.arange(8), None).pixels)
    store.check(tmp_path / "strips", 1, lambda images: None)


def test_the_same_command_continues_and_another_is_refused(folders, tmp_path, monkeypatch):
    first = in_strips(folders, tmp_path / "strips")
    with monkeypatch.context() as patch:  # another version of the program may write other bytes
        patch.setattr(strips, "in_strips", lambda data: pytest.fail("written again"))
        assert in_strips(folders, tmp_path / "strips") == first
    with pytest.raises(ValueError, match=r"is a store in strips: say --strips, or choose another folder"):
        store.prepare(find(folders), tmp_path / "strips", 5, 1, lambda images: None)
    store.prepare(find(folders), tmp_path / "plain", 5, 1, lambda images: None)
    with pytest.raises(ValueError, match=r"is a store without strips: leave out --strips, or choose another folder"):
        in_strips(folders, tmp_path / "plain")


def test_unreadable_images_are_named_as_ever(folders, tmp_path):
    copied = shutil.copytree(folders, tmp_path / "set")
    cut_in_half(find(copied).splits["train"].name(0))
    with pytest.raises(ValueError, match=r"1 of the images cannot be read"):
        in_strips(copied, tmp_path / "strips")


def test_the_command_needs_the_program(run_script, folders, tmp_path, monkeypatch):
    command = ["scripts/prepare_imagenet.py", folders, tmp_path / "store", "--any-counts", "--strips"]
    monkeypatch.setenv("PATH", "")
    status, _, error = run_script(*command)
    assert status == 2
    assert "strips need the program jpegtran: apt install libjpeg-turbo-progs" in error
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    status, _, error = run_script(*command)
    assert status == 0, error
    assert Image.open(io.BytesIO(Images(str(tmp_path / "store"), 32).files["train"].read(0))).size == (80, 60)
