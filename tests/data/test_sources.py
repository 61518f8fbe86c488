"""Data sets in the formats that they come in, and what is said about wrong ones."""

import errno
import gzip
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_renorm.data import files
from batch_renorm.data.images import Images
from batch_renorm.data.sources import find
from batch_renorm.errors import TransientReadError, UserError
from tests.data.imagenet_files import NAMES, VAL_LABELS, WNIDS, devkit, tar, train_images, val_images, write

HTML, LFS = b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"


def contents(found, split):
    files = found.splits[split]
    return [(int(label), files.read(index)) for index, label in enumerate(files.labels)]


def both(found):
    return contents(found, "train"), contents(found, "val")


def complaint(root):
    with pytest.raises(UserError) as error:
        find(root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copied(folders, written, tmp_path):
    """Copies a data set, to be changed."""
    return lambda kind: shutil.copytree(folders if kind == "folders" else written[kind], tmp_path / kind)


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
def test_every_format_holds_the_same_images_in_the_same_places(folders, copied, kind):
    root = copied(kind)
    found, expected = find(root), find(folders)
    assert found.classes == (NAMES if kind == "arrow" else WNIDS)
    in_another_process = pickle.loads(pickle.dumps(found))
    assert both(found) == both(in_another_process) == both(expected)
    for train in (*root.rglob("train"), *root.glob("*_train.tar")):  # validation images alone
        shutil.rmtree(train) if train.is_dir() else train.unlink()
    assert contents(find(root, ("val",)), "val") == contents(expected, "val")


def test_any_folder_of_classes_is_a_data_set(tmp_path):
    for split in ("train", "test"):
        for name in ("cat/black/1.png", "cat/2.JPG", "dog/3.webp", "dog/notes.txt", "dog/._3.webp"):
            write(tmp_path / split / name, name.encode())
    found = find(tmp_path)
    assert found.classes == ["cat", "dog"]
    assert sorted(data for _, data in contents(found, "train")) == [b"cat/2.JPG", b"cat/black/1.png", b"dog/3.webp"]
    assert len(contents(found, "val")) == 3


def test_what_is_missing_is_named_with_what_was_looked_for(tmp_path, copied):
    missing = complaint(tmp_path / "nowhere")
    assert "nowhere, which does not exist: check the path; for ImageNet, download ILSVRC2012_img_train.tar" in missing
    (tmp_path / "file").touch()
    assert "is a file, not a folder" in complaint(tmp_path / "file")
    text = complaint(tmp_path)
    for word in ("train/<class>/*.JPEG", "ILSVRC2012_img_train.tar", "train/state.json", "parquet", "image-net.org"):
        assert word in text
    archives = copied("archives")
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert "have no list of labels: looked for ILSVRC2012_devkit_t12.tar.gz" in complaint(archives)
    (archives / "ILSVRC2012_img_val.tar").unlink()
    assert "not ILSVRC2012_img_val.tar" in complaint(archives)
    (tmp_path / "half/train").mkdir(parents=True)
    assert "no validation images: looked for" in complaint(tmp_path / "half")
    (tmp_path / "half/val").mkdir()
    assert "has no folders: training images must be in train/<class>/*.JPEG" in complaint(tmp_path / "half")


def half_sorted(root):
    """The validation images beside the folders of classes, but for those of one class."""
    for image in (root / "val").glob("*/*"):
        if image.parent.name != WNIDS[0]:
            image.rename(root / "val" / image.name)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda r: write(r / "val/n99/a.JPEG", b""), "val has the class n99, which is none of the 4 classes of the"),
        (lambda r: (r / "train/n1").mkdir(), "train has no images of the class n1: looked for train/n1/*.JPEG"),
        (half_sorted, "val has 6 images beside 2 in folders of classes: sorting them into folders was interrupted"),
        (lambda r: (r / "train" / WNIDS[0] / "all").symlink_to(".."), "all is a link to a folder above it: remove it"),
        (lambda r: (r / "val" / WNIDS[0] / "a.JPEG").symlink_to("nowhere"), "a.JPEG is no file but a pipe, a device"),
        (lambda r: os.mkfifo(r / "train" / WNIDS[0] / "a.JPEG"), "a.JPEG is no file but a pipe, a device or a link"),
    ],
)
def test_wrong_folders_are_named(copied, change, answer):
    root = copied("folders")
    change(root)
    assert answer in complaint(root)


SYNSETS = "\n".join(WNIDS[label] for label in VAL_LABELS)
ROWS = [f'"{name[:23]}","{WNIDS[label]} 1 2 3 4"' for name, label in zip(val_images(), VAL_LABELS, strict=True)]
TABLE = "\r\n".join(ROWS)
TRAIN, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_devkit_t12.tar.gz"
SYNSET_LIST, TABLE_LIST, TINY_LIST = "synset_labels.txt", "LOC_val_solution.csv", "val_annotations.txt"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *((DEVKIT, devkit(folder)) for folder in ("./ILSVRC2012_devkit_t12/data/", "home/me/data/", "data/")),
        ("imagenet_2012_validation_synset_labels.txt", SYNSETS.encode()),
        (TABLE_LIST, f"ImageId,PredictionString\r\n{TABLE}".encode("utf-8-sig")),
    ],
)
def test_the_classes_of_validation_images_are_read(copied, folders, name, data):
    """The devkit however it was packed, and lists."""
    archives = copied("archives")
    (archives / DEVKIT).unlink()
    (archives / name).write_bytes(data)
    assert contents(find(archives), "val") == contents(find(folders), "val")


EMPTY = tar({})
TWO_CLASSES_FOR_ONE = f"{TABLE}\r\n{ROWS[0].split(',')[0]},n99999999 1".encode()


@pytest.mark.parametrize(
    ("name", "data", "answer"),
    [
        (TRAIN, gzip.compress(EMPTY, mtime=0), "is not a whole tar file, uncompressed"),
        (TRAIN, LFS, "is a pointer of Git LFS"),
        (TRAIN, HTML, "is an HTML page"),
        (TRAIN, tar({"a.JPEG": b"x"}), "has no folders: training images must be in train/<class>/*.JPEG, or in a tar"),
        (TRAIN, tar({"n1.tar": EMPTY, "again/n1.tar": EMPTY}), "has the class n1 twice: download it again"),
        (DEVKIT, b"<html>Please log in</html>", "is an HTML page"),
        (DEVKIT, devkit()[:300], "is not a devkit with data/ILSVRC2012_validation_ground_truth.txt and data/meta.mat"),
        (DEVKIT, devkit(meta_name="META"), "is not a devkit with data/"),
        (DEVKIT, b"", "is empty: download ILSVRC2012_devkit_t12.tar.gz again"),
        (SYNSET_LIST, b"\n \n", "is empty: get the list again"),
        (SYNSET_LIST, HTML, "is an HTML page"),
        (SYNSET_LIST, b"n01440764\xff\xfe\n" * 8, "is not a list of labels, in UTF-8"),
        (SYNSET_LIST, b"n01440764\n", "has 1 labels for 8 validation images"),
        (SYNSET_LIST, b"n99999999\n" * 8, "has the class n99999999, which is none of the 4 classes of the data set"),
        (TINY_LIST, TABLE.replace(",", "\t", 1).encode()[:300], "has no class for ILSVRC2012_val_00000007.JPEG"),
        (TABLE_LIST, TWO_CLASSES_FOR_ONE, "has two classes for ILSVRC"),
        (TABLE_LIST, b"ImageId,PredictionString\n", "has no class for ILSVRC2012_val_00000001.JPEG"),
    ],
)
def test_a_wrong_archive_or_list_is_named(copied, name, data, answer):
    archives = copied("archives")
    (archives / name).write_bytes(data)
    assert complaint(archives).startswith(f"{archives / name} {answer}")


@pytest.mark.parametrize("listed", [True, False])
def test_the_class_behind_a_name_is_no_part_of_it(tmp_path, folders, listed):
    """Hugging Face's copy of val/: ILSVRC2012_val_00000001_n01751748.JPEG; the name alone says the class, too."""
    shutil.copytree(folders / "train", tmp_path / "train")
    for (name, data), label in zip(val_images().items(), VAL_LABELS, strict=True):
        write(tmp_path / "val" / f"{name.removesuffix('.JPEG')}_{WNIDS[label]}.JPEG", data)
    if listed:
        (tmp_path / "LOC_val_solution.csv").write_text(TABLE)
    assert contents(find(tmp_path), "val") == contents(find(folders), "val")


def test_tiny_imagenet_is_read_as_it_is_downloaded(tmp_path):
    for wnid in WNIDS:
        write(tmp_path / f"train/{wnid}/images/{wnid}_0.JPEG", wnid.encode())
        write(tmp_path / f"train/{wnid}/{wnid}_boxes.txt", b"0 0 1 1")
    for number, wnid in enumerate(reversed(WNIDS)):
        write(tmp_path / f"val/images/val_{number}.JPEG", wnid.encode())
    rows = "".join(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n" for number, wnid in enumerate(reversed(WNIDS)))
    (tmp_path / "val/val_annotations.txt").write_text(rows)
    write(tmp_path / "test/images/test_0.JPEG", b"")
    found = find(tmp_path)
    assert both(found) == ([(label, wnid.encode()) for label, wnid in enumerate(WNIDS)],) * 2
    assert found.remarks == (f"passed over in {tmp_path}: files *.txt (4)",)


def test_what_systems_leave_among_images_is_passed_over_and_said(folders, copied):
    root = copied("folders")
    for place in ("train/@eaDir/x.JPEG", f"train/{WNIDS[0]}/@eaDir/x.JPEG/THUMB_M.jpg", "val/__MACOSX/a/b.JPEG",
                  f"train/{WNIDS[1]}/.AppleDouble/a.JPEG", "$RECYCLE.BIN/a.JPEG", "train/$RECYCLE.BIN/S-1-5/a.JPEG",
                  "train/lost+found/a.JPEG", f"val/{WNIDS[2]}/._a.JPEG", f"train/{WNIDS[1]}/Thumbs.db",
                  f"train/{WNIDS[1]}/1.npy", f"train/{WNIDS[1]}/2.npy", "train/loose.JPEG"):  # fmt: skip
        write(root / place, b"an image that would count")
    found = find(root)
    assert both(found) == both(find(folders))
    (remark,) = found.remarks
    assert remark.startswith(
        f"passed over in {root}: hidden files and folders, and those of systems (7), files *.npy (2)"
    )
    assert "files *.db (1)" in remark
    assert "images beside the folders of classes (1)" in remark


def test_classes_named_by_numbers_are_sorted_as_numbers(tmp_path):
    for name in ("0", "2", "10", "1"):
        for split in ("train", "val"):
            write(tmp_path / split / name / "a.png", name.encode())
    found = find(tmp_path)
    assert found.classes == ["0", "1", "2", "10"]
    assert [data for _, data in contents(found, "val")] == [b"0", b"1", b"2", b"10"]
    assert "are numbers and sorted as such" in found.remarks[0]
    write(tmp_path / "train/ten/a.png", b"")
    assert find(tmp_path).classes == ["0", "1", "10", "2", "ten"]


def test_validation_images_alone_have_the_labels_of_a_list(tmp_path, written):
    """ImageNetV2 has folders 0 to 999 and nothing else; ImageNet-A some of the wnids."""
    (tmp_path / "list").write_text("".join(f"{wnid} words, of it\n" for wnid in WNIDS))
    for name in ("0", "1", "2", "3"):
        write(tmp_path / "v2" / name / "a.jpeg", name.encode())
    write(tmp_path / "a/val" / WNIDS[2] / "a.jpeg", b"2")
    for class_list in (tmp_path / "list", written["archives"] / "ILSVRC2012_devkit_t12.tar.gz"):
        found = find(tmp_path / "v2", ("val",), str(class_list))
        assert found.classes == WNIDS
        assert contents(found, "val") == [(label, str(label).encode()) for label in range(4)]
        assert contents(find(tmp_path / "a", ("val",), str(class_list)), "val") == [(2, b"2")]
    assert find(tmp_path / "v2", ("val",)).classes == ["0", "1", "2", "3"]
    write(tmp_path / "v2/4/a.jpeg", b"4")
    with pytest.raises(UserError, match=r"v2 has the class 0, which is none of the 4 classes of the data set"):
        find(tmp_path / "v2", ("val",), str(tmp_path / "list"))
    source = Images(str(tmp_path / "a"), 8, splits=["val"], class_list=str(tmp_path / "list"))
    assert (source.classes, source.labels("train").tolist(), source.labels("val").tolist()) == (4, [], [2])


def test_names_that_are_no_utf8_are_read_and_printed(tmp_path):
    for split in (b"train", b"val"):
        for name in (b"caf\xe9", b"$x^2_%{a}", "日本".encode()):
            folder = os.path.join(os.fsencode(tmp_path), split, name)
            os.makedirs(folder)
            with open(os.path.join(folder, b"\xff 1.png"), "wb") as file:
                file.write(name)
    found = find(tmp_path)
    assert [data for _, data in contents(found, "train")] == [b"$x^2_%{a}", b"caf\xe9", "日本".encode()]
    assert found.splits["val"].name(1) == rf"{tmp_path}/val/caf\xe9/\xff 1.png"
    assert contents(pickle.loads(pickle.dumps(found)), "val") == contents(found, "val")


def test_a_read_that_fails_for_a_moment_is_tried_again(folders, monkeypatch):
    """Then it is an error that is not the user's."""
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0))
    source = Images(str(folders), 8)
    read, failures = source.files["val"].read_once, []

    def failing(index):
        if index == 0 and failures:
            raise OSError(failures.pop(), "of the disk")
        return read(index)

    monkeypatch.setattr(source.files["val"], "read_once", failing)
    for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        failures[:] = [code] * 2
        assert len(source.fetch("val", np.array([0]), None).pixels) == 1
        failures[:] = [code] * 3
        with pytest.raises(TransientReadError, match=r"cannot read .*/n01440764/.*JPEG: of the disk \(tried 3 times"):
            source.fetch("val", np.array([0]), None)
    failures[:] = [errno.EACCES]  # not of a moment
    with pytest.raises(UserError, match=r"cannot read the image .*: of the disk; get it again"):
        source.fetch("val", np.array([0]), None)


def test_dots_in_names_do_not_mix_up_labels(tmp_path):
    """img.1.png and img.2.png are two images."""
    for name in WNIDS[:2]:
        write(tmp_path / "train" / name / "a.png", b"a")
    for name in ("img.1.png", "img.2.png"):
        write(tmp_path / "val" / name, name.encode())
    (tmp_path / "val_annotations.txt").write_text(f"img.2.png\t{WNIDS[0]}\nimg.1.png\t{WNIDS[1]}\n")
    assert contents(find(tmp_path), "val") == [(0, b"img.2.png"), (1, b"img.1.png")]


def test_damage_in_the_middle_of_an_archive_is_noticed(copied):
    """tarfile takes a damaged header for the end."""
    train = copied("archives") / TRAIN
    data = bytearray(train.read_bytes())
    data[data.index(f"{WNIDS[1]}.tar".encode()) + 3] ^= 1
    train.write_bytes(data)
    assert complaint(train.parent).startswith(f"{train} is cut off or damaged at byte")


def test_a_list_of_classes_that_train_lacks_is_refused(copied, tmp_path):
    """Else the network would have an output that nothing trains."""
    (tmp_path / "list").write_text("\n".join([*WNIDS, "n99999999"]))
    with pytest.raises(UserError, match=r"train has no images of the class n99999999: looked for"):
        find(copied("folders"), class_list=str(tmp_path / "list"))


def test_classes_that_val_lacks_are_refused_unless_they_are_meant(copied):
    root = copied("folders")
    shutil.rmtree(root / "val" / WNIDS[0])
    (root / "val" / WNIDS[0]).mkdir()
    with pytest.raises(
        UserError, match=r"has no validation images of 1 of its 4 classes \(n01440764\): .*missing_val=allow"
    ):
        Images(str(root), 8)
    allowed = Images(str(root), 8, missing_val="allow")
    assert allowed.labels("val").tolist() == sorted(label for label in VAL_LABELS if label)
    shutil.rmtree(root / "val")
    (root / "val" / WNIDS[0]).mkdir(parents=True)
    assert "val has no images: looked for" in complaint(root)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda t: t.drop_columns("label"), "has the columns image: image and label are needed"),
        (lambda t: t.set_column(1, "label", t["label"].cast(pa.string())), "has labels of type string: whole numbers"),
        (lambda t: t.set_column(1, "label", pa.array([None] * len(t), pa.int64())), "has images without a label"),
        (lambda t: t.set_column(1, "label", pa.array([-1] * len(t))), "has images without a label (null or -1)"),
        (lambda t: t.set_column(0, "image", pa.array(["a.JPEG"] * len(t))), "has images as string: save it again"),
        (lambda t: t.set_column(1, "label", pa.array([9] * len(t))), "has the label 9, but the table has 4 classes"),
        (lambda t: t.replace_schema_metadata({"huggingface": "{"}), "is not of a table with names of classes"),
        (LFS, "is a pointer of Git LFS, not the file itself (git lfs pull): copy or download it again"),
        (b"PAR1", "is not a whole Parquet file"),
    ],
)
def test_a_wrong_parquet_file_is_named(copied, change, answer):
    path = copied("parquet") / "data/train-00001-of-00002.parquet"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        pq.write_table(change(pq.read_table(path)), path)
    text = complaint(path.parents[1])
    assert text.startswith(str(path.parent))
    assert answer in text


def test_a_series_of_parquet_files_is_whole(copied):
    root = copied("parquet")
    path = (root / "data/train-00001-of-00002.parquet").rename(root / "data/train-00001-of-00003.parquet")
    assert "has files of several series" in complaint(root)
    path.unlink()
    lacks = "lacks number 1 of the files such as train-00000-of-00002.parquet (1 of 2 files): download it"
    assert complaint(root) == f"{root / 'data'} {lacks}"


@pytest.mark.parametrize("wrap", [bytes, lambda data: {"bytes": data}])
def test_a_table_of_ones_own_numbers_its_classes(tmp_path, wrap):
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        table = pa.table({"label": [10, 2], "image": [wrap(b"ten"), wrap(b"two")]})
        pq.write_table(table, tmp_path / f"data/{split}-00000-of-00001.parquet")
    found = find(tmp_path)
    assert found.classes == list(map(str, range(11)))
    assert contents(found, "val") == [(10, b"ten"), (2, b"two")]


def test_the_hubs_own_conversion_to_parquet_is_read(tmp_path, written):
    hub = tmp_path / "hub/default"
    for split in ("train", "validation"):
        for number in range(2):
            file = f"{split}-{number:05d}-of-00002.parquet"
            write(hub / split / f"{number:04d}.parquet", (written["parquet"] / "data" / file).read_bytes())
    for root in (hub, hub.parent):
        assert both(find(root)) == both(find(written["parquet"]))
    (hub / "train/0000.parquet").rename(hub / "train/0002.parquet")
    assert f"{hub / 'train'} lacks number 0 of the files such as 0001.parquet (1 of 3 files)" in complaint(hub)
    (hub / "train").rename(hub / "partial-train")  # where the conversion ended before its end
    assert "has no train images" in complaint(hub)
