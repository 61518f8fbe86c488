"""Decoding a part of an image gives the pixels of the whole one's, with nvImageCodec and without."""

import io
import pickle
from functools import partial

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from batch_renorm.data import regions
from batch_renorm.data.augmentation import random_box, resized
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Division, Draw, TrainingPasses, training_loader
from batch_renorm.data.scan import header_of, restarts_of
from tests.data.imagenet_files import cut_in_half, write_folders

needs_codec = pytest.mark.skipif(regions.codec() is None, reason="nvImageCodec is not installed")


def picture(rng, width, height):
    coarse = rng.integers(0, 256, (height // 5 + 2, width // 5 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + rng.integers(-9, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)


def jpeg(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **({"quality": 85} | options))
    return buffer.getvalue()


def turned(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return jpeg(pixels, exif=exif)


def grey(pixels):
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), 80, "GRAY", "Gray")


def lacking_scans(pixels):
    whole = jpeg(pixels, progressive=True)
    second = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)
    return whole[:second] + b"\xff\xd9"


IN_PART = {
    **{sampling: lambda p, s=sampling: simplejpeg.encode_jpeg(p, 80, "RGB", s)
       for sampling in ("444", "422", "420", "440", "411")},
    "grey": grey,
    "RGB inside": lambda p: jpeg(p, keep_rgb=True),
    "restarts": lambda p: jpeg(p, subsampling=2, restart_marker_blocks=3),
    "EXIF": turned,
}  # fmt: skip
WHOLE = {
    "progressive": lambda p: jpeg(p, progressive=True),
    "lacking scans": lacking_scans,
    "CMYK": lambda p: jpeg(p, "CMYK"),
    "bytes behind it": lambda p: jpeg(p) + b"\0",
    "PNG": lambda p: png(p),
}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [*IN_PART, *WHOLE])
def test_a_part_is_that_of_the_whole_image(kind):
    rng = np.random.default_rng(len(kind))
    for trial in range(25):
        width, height = (int(n) for n in (rng.integers(1, 200, 2) if trial else (1, 1)))
        data = (IN_PART | WHOLE)[kind](picture(rng, width, height))
        whole = decode(data)
        boxes = [random_box(rng, width, height) for _ in range(4)]
        for _ in range(8):
            left, top = int(rng.integers(width)), int(rng.integers(height))
            boxes.append((left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1))
        for box in [*boxes, (0, 0, width, height)]:
            sizes = []
            part = regions.decode_part(data, lambda w, h, box=box, sizes=sizes: (sizes.append((w, h)), box)[1])
            expected = whole[box[1] : box[3], box[0] : box[2]]
            assert set(sizes) == {(width, height)}
            np.testing.assert_array_equal(part, expected, strict=True)
            if trial % 5 == 0:
                assert torch.equal(resized(part, 33), resized(expected, 33))


@needs_codec
def test_what_is_decoded_in_part_and_what_is_not(monkeypatch):
    monkeypatch.setattr(regions, "decode", lambda data: pytest.fail("decoded whole"))
    pixels = picture(np.random.default_rng(0), 90, 70)
    for make in IN_PART.values():
        assert regions.decode_part(make(pixels), lambda width, height: (20, 30, 50, 60)).shape == (30, 30, 3)
    for make in WHOLE.values():
        header = header_of(make(pixels))
        assert header is None or restarts_of(make(pixels), header) is None


def outcome(decoded):
    try:
        return decoded()
    except UnreadableImage as error:
        return str(error)


def damaged(data, rng, trial, before=-2):
    """Some bytes changed before a place; of every fifth file a piece or the rest missing."""
    data = bytearray(data)
    for place in rng.integers(2, before if before > 0 else len(data) + before, 1 + trial % 3):
        data[place] ^= int(rng.integers(1, 256))
    if trial % 5 == 0:
        first = int(rng.integers(len(data)))
        del data[first : first + int(rng.integers(1, 40)) if trial % 2 else None]
    return bytes(data)


def whole_and_part(data):
    """A part cut from the whole image, and decoded alone: pixels or the refusal."""

    def middle(width, height):
        return width // 4, height // 3, max(width // 4 + 1, width // 2), max(height // 3 + 1, height // 2)

    return tuple(outcome(partial(way, data, middle)) for way in (regions.part_of_whole, regions.decode_part))


def test_broken_files_are_refused_or_decoded_as_ever():
    """Bytes changed at random places, others missing: the pixels of the whole image, or its refusal, word by word."""
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(400):
        data = jpeg(picture(rng, 60, 50), subsampling=trial % 3, restart_marker_blocks=trial % 4)
        expected, part = whole_and_part(damaged(data, rng, trial))
        np.testing.assert_array_equal(part, expected, strict=True)
        refused += isinstance(expected, str)
    assert 20 < refused < 200


@needs_codec
def test_training_images_do_not_depend_on_it(folders, monkeypatch):
    """Also in loader processes, where one was used before they are forked."""
    source = Images(str(folders), 32)
    draw, indices = Draw(1, 2, 3, minibatch=6), np.arange(12)
    fetched = source.fetch("train", indices, draw)
    regime = lambda seed, step, worker: indices  # noqa: E731
    (passed,) = next(iter(training_loader(TrainingPasses(source, regime, Division(1), 5), 0, 1, processes=1))).fetched
    source = pickle.loads(pickle.dumps(source))
    monkeypatch.setattr(regions, "codec", lambda: None)
    assert torch.equal(fetched.pixels, source.fetch("train", indices, draw).pixels)
    assert torch.equal(fetched.colours, source.fetch("train", indices, draw).colours)
    assert torch.equal(passed.pixels, source.fetch("train", indices, Draw(5, 0, 0)).pixels)


def test_what_is_cut_off_is_replaced_whatever_its_crop(tmp_path):
    root = write_folders(tmp_path / "set")
    source = Images(str(root), 32, on_error="skip")
    cut_in_half(source.files["train"].name(4))
    assert all(source.fetch("train", np.array([4]), Draw(0, step, 0)).replaced == 1 for step in range(20))


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(regions, "codec", lambda: None)
    data = jpeg(picture(np.random.default_rng(0), 40, 30))
    part = regions.decode_part(data, lambda width, height: (3, 4, 20, 20))
    np.testing.assert_array_equal(part, decode(data)[4:20, 3:20])
