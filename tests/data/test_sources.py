"""Data sets in the formats that they come in, and what is said about wrong ones."""

import pickle
import shutil

import pytest

from batch_renorm.data.sources import find
from tests.data.imagenet_files import NAMES, VAL_LABELS, WNIDS, train_images, val_images, write, write_folders


def contents(found, split):
    files = found.splits[split]
    return [(int(label), files.read(index)) for index, label in enumerate(files.labels)]


def test_folders_have_labels_in_the_order_of_wnids(folders):
    found = find(folders)
    assert found.classes == WNIDS
    files = train_images()
    assert contents(found, "train") == [
        (label, files[wnid][name]) for label, wnid in enumerate(WNIDS) for name in sorted(files[wnid])
    ]
    images = sorted(zip(VAL_LABELS, val_images().items(), strict=True))
    assert contents(found, "val") == [(label, data) for label, (_, data) in images]
    assert found.splits["train"].name(0) == str(folders / "train" / WNIDS[0] / f"{WNIDS[0]}_19.JPEG")


@pytest.mark.parametrize("kind", ["archives", "arrow", "flat", "kaggle"])
def test_every_format_holds_the_same_images_in_the_same_places(folders, written, kind):
    found, expected = find(written[kind]), find(folders)
    assert found.classes == (NAMES if kind == "arrow" else WNIDS)
    in_another_process = pickle.loads(pickle.dumps(found))
    for split in ("train", "val"):
        assert contents(found, split) == contents(expected, split)
        assert contents(in_another_process, split) == contents(expected, split)


def test_numbers_in_names_are_compared_without_extension_and_class(tmp_path):
    """n1_9, n1_19, n1_29 sort as n1_19 < n1_29 < n1_9, with or without Hugging Face's suffix behind them."""
    stems = ["n01440764_1", "n01440764_10", "n01440764_2"]
    for root, suffix in ((tmp_path / "a", ""), (tmp_path / "b", "_n01440764")):
        for split in ("train", "val"):
            for stem in stems:
                write(root / split / "n01440764" / f"{stem}{suffix}.JPEG", stem.encode())
        assert [data.decode() for _, data in contents(find(root), "train")] == stems


def test_any_folder_of_classes_is_a_data_set(tmp_path):
    for split in ("train", "test"):
        for name in ("cat/black/1.png", "cat/2.JPG", "dog/3.webp", "dog/notes.txt", "dog/._3.webp"):
            write(tmp_path / split / name, name.encode())
    found = find(tmp_path)
    assert found.classes == ["cat", "dog"]
    assert sorted(data for _, data in contents(found, "train")) == [b"cat/2.JPG", b"cat/black/1.png", b"dog/3.webp"]
    assert len(contents(found, "val")) == 3


def test_a_list_of_synsets_labels_images_in_one_folder(tmp_path, written, folders):
    shutil.copytree(written["flat"], tmp_path / "set")
    shutil.rmtree(tmp_path / "set/ILSVRC2012_devkit_t12")
    listing = tmp_path / "set/imagenet_2012_validation_synset_labels.txt"
    listing.write_text("".join(f"{WNIDS[label]}\n" for label in VAL_LABELS))
    assert contents(find(tmp_path / "set"), "val") == contents(find(folders), "val")
    listing.write_text("n01440764\n")
    with pytest.raises(ValueError, match=r"synset_labels.txt has 1 labels for 8 validation images"):
        find(tmp_path / "set")
    listing.write_text("n99999999\n" * 8)
    with pytest.raises(ValueError, match=r"names the class 'n99999999', which the training images do not have"):
        find(tmp_path / "set")


def complaint(root):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (every caller compares the text)
        find(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing_is_named_with_what_was_looked_for(tmp_path, written):
    assert "nowhere, which does not exist; download ILSVRC2012_img_train.tar" in complaint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in complaint(tmp_path / "file")
    text = complaint(tmp_path)
    for word in ("train/<class>/*.JPEG", "ILSVRC2012_img_train.tar", "train/state.json", "parquet", "image-net.org"):
        assert word in text
    shutil.copytree(written["archives"], tmp_path / "archives")
    (tmp_path / "archives/ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert "have no list of labels: looked for ILSVRC2012_devkit_t12.tar.gz" in complaint(tmp_path / "archives")
    (tmp_path / "archives/ILSVRC2012_img_val.tar").unlink()
    assert "not ILSVRC2012_img_val.tar" in complaint(tmp_path / "archives")
    (tmp_path / "half/train").mkdir(parents=True)
    assert "no validation images: looked for" in complaint(tmp_path / "half")
    (tmp_path / "half/val").mkdir()
    assert "has no folders: training images must be in train/<class>/*.JPEG" in complaint(tmp_path / "half")


def test_wrong_folders_are_named(tmp_path):
    write_folders(tmp_path)
    write(tmp_path / "val/n99/a.JPEG", b"")
    assert "has the class n99, which" in complaint(tmp_path)
    shutil.rmtree(tmp_path / "val/n99")
    (tmp_path / "train/n00000001").mkdir()
    assert "the class n00000001 has no images" in complaint(tmp_path)


def test_a_download_that_stopped_is_noticed_at_once(tmp_path, written):
    shutil.copytree(written["archives"], tmp_path / "archives")
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        archive = tmp_path / "archives" / name
        whole = archive.read_bytes()
        archive.write_bytes(whole[: len(whole) // 2])
        assert name in complaint(tmp_path / "archives")
        assert "download it again" in complaint(tmp_path / "archives")
        archive.write_bytes(whole)
    shutil.copytree(written["arrow"], tmp_path / "arrow")
    shard = next((tmp_path / "arrow/train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:2000])
    assert "is not a whole Arrow file" in complaint(tmp_path / "arrow")
