"""Files cut off, emptied and with flipped bytes: the right data, or one line with the file's name. Seeded."""

import io
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from batch_renorm.data.images import UnreadableImage, decode
from batch_renorm.data.sources import find
from batch_renorm.errors import UserError
from tests.data.imagenet_files import encoded

FLIPS = (1, 1, 3)  # bytes, in as many images at most
HARMS = ("cut", "emptied", "flipped", "flipped in front", "another file", "gone")


def harmed(data, harm, chance):
    if harm == "cut":
        return data[: chance.randrange(len(data))]
    if harm in ("emptied", "another file"):
        return b"" if harm == "emptied" else b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"
    result = bytearray(data)
    for _ in range(chance.choice(FLIPS)):
        place = chance.randrange(min(len(data), 512 if harm == "flipped in front" else len(data)))
        result[place] ^= 1 << chance.randrange(8)
    return bytes(result)


def harm_one(root, chance):
    """Harm a random file below a folder, of each kind as often; its path and how."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size)
    kind = chance.choice(sorted({path.suffix for path in files}))
    path = chance.choice([path for path in files if path.suffix == kind])
    harm = chance.choice(HARMS)
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(harmed(path.read_bytes(), harm, chance))
    return path, harm


def contents(root):
    """Split, label and pixels of every image."""
    result = Counter()
    for split, files in find(root).splits.items():
        for index, label in enumerate(files.labels.tolist()):
            try:
                image = decode(files.read(index))
            except (OSError, UnreadableImage) as error:
                raise UserError(f"{files.name(index)}: {error}") from error
            result[split, label, image.shape, image.tobytes()] += 1
    return result


def differing(found, expected):
    """Images that are not among the expected ones, with their label, or more or fewer than those."""
    return max((found - expected).total(), (expected - found).total())


def assert_one_line(error, path, root):
    """It names the file, or the folder that lacks it."""
    text = str(error)
    assert "\n" not in text, text
    known = [path.name, str(path.parent)] + [str(path.parent.parent)] * (path.parent.parent != root)
    assert any(name in text for name in known), f"{path}: {text}"


@pytest.mark.parametrize("kind", ["store", "arrow", "archives", "flat", "kaggle", "parquet"])
def test_a_data_set_with_a_harmed_file_is_read_right_or_refused_by_name(written, tmp_path, kind):
    """What no format can notice is a byte in the middle of one image, of its name or of a label in a plain list."""
    trials, refused, chance = 40, 0, random.Random(kind)
    expected = contents(written[kind])
    for trial in range(trials):
        root = tmp_path / str(trial)
        shutil.copytree(written[kind], root)
        path, harm = harm_one(root, chance)
        one_of_many = harm == "gone" and path.suffix == ".JPEG"  # nobody knows its name any more
        try:
            found = contents(root)
        except UserError as error:
            assert_one_line(error, root if one_of_many else path, root)
            refused += 1
        else:
            assert one_of_many or differing(found, expected) <= (max(FLIPS) if harm.startswith("flipped") else 0), path
        finally:
            shutil.rmtree(root)
    assert trials / 4 < refused < trials


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"mode": "CMYK"}, {"format": "TIFF", "quality": None},
     *({"format": kind} for kind in ("PNG", "GIF", "WEBP", "BMP"))],
    ids=str,
)  # fmt: skip
def test_images_decode_or_are_refused(options):
    data, chance = encoded(1, **options), random.Random(str(options))
    for trial in range(60):
        try:
            pixels = decode(harmed(data, HARMS[trial % 5], chance))
        except UnreadableImage as error:
            words = str(error)
            assert words.splitlines() == [words]
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3


def test_deeper_pixels_keep_their_brightness():
    """Of 16 bits the upper 8; Pillow's own conversion makes such images white."""
    levels = np.arange(0, 65536, 17, dtype=np.uint16).reshape(16, -1)
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, kind)
        assert (decode(buffer.getvalue()) == (levels >> 8)[..., None]).all()
    for mode, dtype in (("floats", np.float32), ("32-bit integers", np.int32)):
        buffer = io.BytesIO()
        Image.fromarray(levels.astype(dtype)).save(buffer, "TIFF")
        with pytest.raises(UnreadableImage, match=f"its pixels are {mode}, whose range nobody knows"):
            decode(buffer.getvalue())
