"""Files cut off, emptied and with flipped bytes: the right data, or one line with the file's name. Seeded."""

import io
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from batch_renorm.data import store
from batch_renorm.data.images import Images, UnreadableImage, decode
from batch_renorm.data.labels import flat_labels
from batch_renorm.data.sources import find
from tests.data.imagenet_files import VAL_LABELS, WNIDS, encoded, val_images

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
    """Harm a random file below a folder; its path and how."""
    path = chance.choice(sorted(path for path in root.rglob("*") if path.is_file() and path.stat().st_size))
    harm = chance.choice(HARMS)
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(harmed(path.read_bytes(), harm, chance))
    return path, harm


def contents(root):
    """Labels and pixels of everything, as a run would read it."""
    source = Images(str(root), 8)
    return {split: (source.labels(split), [source.image(split, i) for i in range(len(source.labels(split)))])
            for split in ("train", "val")}  # fmt: skip


def differing(found, expected):
    """Images that are not among the expected ones, with their label, or more or fewer than those."""

    def counted(part):
        return Counter((int(label), image.shape, image.tobytes()) for label, image in zip(*part, strict=True))

    pairs = [(counted(found[split]), counted(expected[split])) for split in expected]
    return sum(max((one - other).total(), (other - one).total()) for one, other in pairs)


def assert_one_line(error, path, root):
    """It names the file, or the folder that lacks it."""
    text = str(error)
    assert "\n" not in text, text
    known = [path.name, str(path.parent)] + [str(path.parent.parent)] * (path.parent.parent != root)
    assert any(name in text for name in known), f"{path}: {text}"


@pytest.fixture(scope="module")
def stored(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("stored") / "store"
    store.prepare(find(folders), root, 5, 1, lambda images: None)
    return root


@pytest.mark.parametrize(
    ("kind", "trials"), [("store", 80), ("arrow", 60), ("archives", 60), ("flat", 60), ("kaggle", 40)]
)
def test_a_data_set_with_a_harmed_file_is_read_right_or_refused_by_name(stored, written, tmp_path, kind, trials):
    """What no format can notice is a byte in the middle of one image, of its name or of a label in a plain list."""
    source = stored if kind == "store" else written[kind]
    expected, chance, refused = contents(source), random.Random(kind), 0
    for trial in range(trials):
        root = tmp_path / str(trial)
        shutil.copytree(source, root)
        path, harm = harm_one(root, chance)
        try:
            found = contents(root)
        except ValueError as error:
            one_of_many = harm == "gone" and path.suffix == ".JPEG"  # nobody knows its name any more
            assert_one_line(error, root if one_of_many else path, root)
            refused += 1
        else:
            if harm == "gone" and path.suffix == ".JPEG":  # a folder of other images
                continue
            assert (
                harm.startswith("flipped") or path.suffix in (".json", ".csv", ".md") or not differing(found, expected)
            )
            assert differing(found, expected) <= max(FLIPS), (path, harm)
        finally:
            shutil.rmtree(root)
    assert trials / 4 < refused < trials


@pytest.mark.parametrize("trials", [30])
def test_parquet_files_are_read_right_or_refused_by_name(written, tmp_path, trials):
    def read(root):
        found = find(root)
        return {split: (files.labels, [decode(files.read(i)) for i in range(len(files.labels))])
                for split, files in found.splits.items()}  # fmt: skip

    expected, chance, refused = read(written["parquet"]), random.Random(5), 0
    for trial in range(trials):
        root = tmp_path / str(trial)
        shutil.copytree(written["parquet"], root)
        path, _ = harm_one(root / "data", chance)
        try:
            assert differing(read(root), expected) <= max(FLIPS)
        except UnreadableImage:
            pass  # named by whoever knows the row
        except ValueError as error:
            assert_one_line(error, path, root)
            refused += 1
    assert refused > trials / 4


def saved(**options):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded(4))).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [encoded(1), encoded(2, format="PNG"), encoded(3, mode="CMYK"), saved(format="TIFF"), encoded(5, format="GIF"),
     encoded(6, format="WEBP"), encoded(7, format="BMP"), encoded(8, progressive=True)],
    ids=["JPEG", "PNG", "CMYK", "TIFF", "GIF", "WEBP", "BMP", "progressive"],
)  # fmt: skip
def test_images_decode_or_are_refused(data):
    chance = random.Random(len(data))
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


def test_lists_of_labels_are_read_right_or_refused_by_name(tmp_path):
    names, chance, outcomes = sorted(val_images()), random.Random(1), []
    path = tmp_path / "val_annotations.txt"
    whole = "".join(f"{n}\t{WNIDS[label]}\t0\t0\t62\t62\n" for n, label in zip(names, VAL_LABELS, strict=True)).encode()
    for trial in range(120):
        path.write_bytes(harmed(whole, HARMS[trial % 5], chance))
        try:
            wrong = sum(flat_labels(names, WNIDS, [tmp_path])[1] != VAL_LABELS)
            assert wrong <= max(FLIPS)
            outcomes.append("right")
        except ValueError as error:
            assert_one_line(error, path, tmp_path)
            outcomes.append("refused")
    assert {"right", "refused"} == set(outcomes)


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
