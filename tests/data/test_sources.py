"""Data sets in the formats that they come in, and what is said about wrong ones."""

import errno
import gzip
import io
import os
import pickle
import shutil
import socket
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_renorm.data import files
from batch_renorm.data.images import Images
from batch_renorm.data.sources import find
from batch_renorm.errors import TransientReadError, UserError
from tests.data.imagenet_files import (
    NAMES,
    VAL_LABELS,
    WNIDS,
    devkit,
    tar,
    train_images,
    val_images,
    write,
    write_folders,
)  # fmt: skip


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
    missing = complaint(tmp_path / "nowhere")
    assert "nowhere, which does not exist: check the path; for ImageNet, download ILSVRC2012_img_train.tar" in missing
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


@pytest.fixture
def archives(written, tmp_path):
    """A copy of the official archives, to be changed."""
    return shutil.copytree(written["archives"], tmp_path / "archives")


def packed_again(data, change):
    """A devkit's archive with other names of its members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=buffer, mode="w:gz") as new:
        for member in old.getmembers():
            content = old.extractfile(member)
            member.name = change(member.name)
            new.addfile(member, content)
    return buffer.getvalue()


def test_a_devkit_is_read_however_it_was_packed_and_a_bad_one_named(archives, folders):
    path = archives / "ILSVRC2012_devkit_t12.tar.gz"
    for change in (lambda name: f"./{name}", lambda name: f"home/me/{name}", lambda name: name.partition("/")[2]):
        path.write_bytes(packed_again(devkit(), change))
        assert contents(find(archives), "val") == contents(find(folders), "val")
    for data, answer in (
        (b"<html>Please log in</html>", "is an HTML page"),
        (devkit()[:300], "is not the devkit's archive"),
        (b"", "is empty"),
        (packed_again(devkit(), lambda name: name.replace("meta.mat", "META")), "lacks data/"),
    ):
        path.write_bytes(data)
        text = complaint(archives)
        assert text.startswith(f"{path} {answer}")
        assert text.endswith("download ILSVRC2012_devkit_t12.tar.gz again")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_labels_may_have_a_byte_order_mark_and_quotes(archives, folders, encoding):
    rows = [
        f'"{name.removesuffix(".JPEG")}","{WNIDS[label]} 1 2 3 4"'
        for name, label in zip(val_images(), VAL_LABELS, strict=True)
    ]
    (archives / "LOC_val_solution.csv").write_text("\r\n".join(["ImageId,PredictionString", *rows]), encoding=encoding)
    assert contents(find(archives), "val") == contents(find(folders), "val")


@pytest.mark.parametrize(
    ("name", "data", "answer"),
    [
        ("synset_labels.txt", b"", "is empty: get the list again"),
        ("synset_labels.txt", b"\n \n", "is empty: get the list again"),
        ("synset_labels.txt", b"n01440764\xff\xfe\n" * 8, "is not a list of labels, in UTF-8"),
        ("synset_labels.txt", b"\x00n" * 20, "is not a list of labels, in UTF-8"),
        (
            "val_annotations.txt",
            b"ILSVRC2012_val_00000001.JPEG\tn01440764\nILSVRC2012_val_00000002.JPEG\n",
            "no class in line 2",
        ),
        ("val_annotations.txt", b"a.JPEG\tn01440764\na.JPEG\tn02123045\n", "has two classes for a.JPEG"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\n", "has no line for ILSVRC2012_val_00000001.JPEG"),
    ],
)
def test_a_bad_list_of_labels_is_named(archives, name, data, answer):
    (archives / name).write_bytes(data)
    text = complaint(archives)
    assert text.startswith(str(archives / name))
    assert answer in text


@pytest.mark.parametrize("listed", [True, False])
def test_the_class_behind_a_name_is_no_part_of_it(tmp_path, folders, listed):
    """Hugging Face's copy of val/: ILSVRC2012_val_00000001_n01751748.JPEG; the name alone says the class, too."""
    shutil.copytree(folders / "train", tmp_path / "train")
    for (name, data), label in zip(val_images().items(), VAL_LABELS, strict=True):
        write(tmp_path / "val" / f"{name.removesuffix('.JPEG')}_{WNIDS[label]}.JPEG", data)
    if listed:
        rows = [f"{name[:23]},{WNIDS[label]} 1 2" for name, label in zip(val_images(), VAL_LABELS, strict=True)]
        (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
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
    for split in ("train", "val"):
        assert contents(found, split) == [(label, wnid.encode()) for label, wnid in enumerate(WNIDS)]
    assert found.remarks == (f"passed over in {tmp_path}: files *.txt (4)",)


def test_the_hubs_own_parquet_files_are_found_and_a_part_of_them_is_not_taken_for_all(tmp_path, written):
    hub = tmp_path / "hub/default"
    for split in ("train", "validation"):
        for number in range(2):
            file = f"{split}-{number:05d}-of-00002.parquet"
            write(hub / split / f"{number:04d}.parquet", (written["parquet"] / "data" / file).read_bytes())
    for root in (hub, hub.parent):
        for split in ("train", "val"):
            assert contents(find(root), split) == contents(find(written["parquet"]), split)
    (hub / "train/0000.parquet").rename(hub / "train/0002.parquet")
    assert f"{hub / 'train'} lacks 0000.parquet (1 of 3 files)" in complaint(hub)
    (hub / "train").rename(hub / "partial-train")
    assert "is a part of the data set, which the hub's conversion ended with" in complaint(hub)


def test_what_systems_leave_among_images_is_passed_over_and_said(folders, tmp_path):
    root = shutil.copytree(folders, tmp_path / "set")
    for place in ("train/@eaDir/x.JPEG", f"train/{WNIDS[0]}/@eaDir/x.JPEG/THUMB_M.jpg", "val/__MACOSX/a/b.JPEG",
                  f"train/{WNIDS[1]}/.AppleDouble/a.JPEG", "$RECYCLE.BIN/a.JPEG", "train/$RECYCLE.BIN/S-1-5/a.JPEG",
                  "train/lost+found/a.JPEG", f"val/{WNIDS[2]}/._a.JPEG", f"train/{WNIDS[1]}/Thumbs.db",
                  f"train/{WNIDS[1]}/1.npy", f"train/{WNIDS[1]}/2.npy", "train/loose.JPEG"):  # fmt: skip
        write(root / place, b"an image that would count")
    found, expected = find(root), find(folders)
    for split in ("train", "val"):
        assert contents(found, split) == contents(expected, split)
    (remark,) = found.remarks
    for part in ("folders @eaDir (2)", "folders __MACOSX (1)", "folders $RECYCLE.BIN (1)", "folders lost+found (1)",
                 "hidden files and folders (2)", "files *.npy (2)", "files *.db (1)",
                 "images beside the folders of classes (1)"):  # fmt: skip
        assert part in remark


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to nothing"])
def test_what_is_no_file_is_refused_and_never_waited_for(folders, tmp_path, kind, monkeypatch):
    root = shutil.copytree(folders, tmp_path / "set")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    for place in (f"set/train/{WNIDS[1]}/a.JPEG", "set/list"):
        path = Path(place)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        else:
            path.symlink_to("nowhere")
        with pytest.raises(UserError, match=f"{path.name}.*(is no file but|No such file).*(remove|on each line)"):
            find(root, class_list=None if "JPEG" in place else str(root / "list"))
        path.unlink()


@pytest.mark.parametrize("target", [".", ".."])
def test_a_link_upwards_is_refused(folders, tmp_path, target):
    """Else every image would be there forty times."""
    root = shutil.copytree(folders, tmp_path / "set")
    (root / "train" / WNIDS[0] / "all").symlink_to(target)
    assert complaint(root) == f"{root / 'train' / WNIDS[0] / 'all'} is a link to a folder above it: remove it"


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
    with pytest.raises(UserError, match=r"v2 has the class 0, which the training images or the list do not have"):
        find(tmp_path / "v2", ("val",), str(tmp_path / "list"))
    source = Images(str(tmp_path / "a"), 8, splits=["val"], class_list=str(tmp_path / "list"))
    assert (source.classes, source.labels("train").tolist(), source.labels("val").tolist()) == (4, [], [2])


@pytest.mark.parametrize("kind", ["archives", "flat", "kaggle", "arrow"])
def test_validation_images_alone_in_every_format(written, tmp_path, kind):
    root = shutil.copytree(written[kind], tmp_path / "set")
    for train in (*root.rglob("train"), *root.glob("*_train.tar")):
        if train.is_dir():
            shutil.rmtree(train)
        else:
            train.unlink()
    assert contents(find(root, ("val",)), "val") == contents(find(written[kind]), "val")


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
    """Then it is an error that is not the user's, also where unreadable images are skipped."""
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0))
    source = Images(str(folders), 8, on_error="skip")
    read, failures = source.files["val"].read, []

    def failing(index):
        if index == 0 and failures:
            raise OSError(failures.pop(), "of the disk")
        return read(index)

    monkeypatch.setattr(source.files["val"], "read", failing)
    for code in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        failures[:] = [code] * 2
        assert source.fetch("val", np.array([0]), None).replaced == 0
        failures[:] = [code] * 3
        with pytest.raises(TransientReadError, match=r"cannot read .*/n01440764/.*JPEG: of the disk \(tried 3 times"):
            source.fetch("val", np.array([0]), None)
    failures[:] = [errno.EACCES]
    assert source.fetch("val", np.array([0]), None).replaced == 1  # not of a moment


def test_dots_in_names_do_not_mix_up_labels(tmp_path):
    """img.1.png and img.2.png are two images."""
    for name in WNIDS[:2]:
        write(tmp_path / "train" / name / "a.png", b"a")
    for name in ("img.1.png", "img.2.png"):
        write(tmp_path / "val" / name, name.encode())
    (tmp_path / "val_annotations.txt").write_text(f"img.2.png\t{WNIDS[0]}\nimg.1.png\t{WNIDS[1]}\n")
    assert contents(find(tmp_path), "val") == [(0, b"img.2.png"), (1, b"img.1.png")]


def test_archives_of_another_kind_are_named_with_the_right_cure(archives):
    train = archives / "ILSVRC2012_img_train.tar"
    whole = train.read_bytes()
    for data, answer in (
        (gzip.compress(whole), "is compressed: unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is an HTML page"),
        (tar({"n1/a.JPEG": b"x"}), "should be a tar of n01440764.tar and so on, as image-net.org has it"),
    ):
        train.write_bytes(data)
        text = complaint(archives)
        assert text.startswith(str(train))
        assert answer in text
    damaged = bytearray(whole)
    second = whole.find(
        b"\x00" * 512 + WNIDS[2].encode()[:9]
    )  # a header in the middle, which tarfile takes for the end
    place = whole.find(f"{WNIDS[1]}.tar".encode()) if second < 0 else second + 512
    damaged[place + 3] ^= 1
    train.write_bytes(damaged)
    assert "is cut off or damaged at byte" in complaint(archives)


def test_validation_images_half_in_folders_are_not_half_a_data_set(written, tmp_path):
    root = shutil.copytree(written["flat"], tmp_path / "set")
    for name in sorted(val_images())[:3]:
        (root / "val" / WNIDS[0]).mkdir(exist_ok=True)
        (root / "val" / name).rename(root / "val" / WNIDS[0] / name)
    assert f"{root / 'val'} has 5 images beside 1 folders of classes that have some" in complaint(root)


def test_classes_that_val_lacks_are_refused_unless_they_are_meant(folders, tmp_path):
    root = shutil.copytree(folders, tmp_path / "set")
    shutil.rmtree(root / "val" / WNIDS[0])
    (root / "val" / WNIDS[0]).mkdir()
    with pytest.raises(
        UserError, match=r"has no validation images of 1 of its 4 classes \(n01440764\): .*missing_val=allow"
    ):
        Images(str(root), 8)
    allowed = Images(str(root), 8, missing_val="allow")
    assert allowed.labels("val").tolist() == sorted(label for label in VAL_LABELS if label)
    for wnid in WNIDS:
        shutil.rmtree(root / "val" / wnid, ignore_errors=True)
        (root / "val" / wnid).mkdir()
    assert "val has no images: looked for" in complaint(root)


def tables(root, change):
    """Write the training images' first Parquet file again, changed."""
    path = sorted((root / "data").glob("train-*"))[0]
    pq.write_table(change(pq.read_table(path)), path)
    return path


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda t: t.drop_columns("label"), "has the columns image: image and label are needed"),
        (lambda t: t.set_column(1, "label", t["label"].cast(pa.string())), "has labels of type string: whole numbers"),
        (lambda t: t.set_column(1, "label", pa.array([None] * len(t), pa.int64())), "images without a label"),
        (lambda t: t.set_column(1, "label", pa.array([-1] * len(t))), "has images without a label (null or -1)"),
        (lambda t: t.set_column(0, "image", pa.array(["a.JPEG"] * len(t))), "has images as string: save it again"),
        (lambda t: t.set_column(1, "label", pa.array([9] * len(t))), "has the label 9, but 4 classes are named in"),
    ],
)
def test_parquet_files_of_other_columns_are_named(written, tmp_path, change, answer):
    root = shutil.copytree(written["parquet"], tmp_path / "set")
    path = tables(root, change)
    text = complaint(root)
    assert text.startswith(str(path))
    assert answer in text


def test_a_missing_or_unreal_parquet_file_is_named(written, tmp_path):
    root = shutil.copytree(written["parquet"], tmp_path / "set")
    path = root / "data/train-00001-of-00002.parquet"
    whole = path.read_bytes()
    for data, answer in (
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS, not the file itself (git lfs pull)",
        ),
        (whole[:-20], "is not a whole Parquet file"),
        (b"", "is empty"),
    ):
        path.write_bytes(data)
        text = complaint(root)
        assert text.startswith(f"{path} {answer}")
        assert text.endswith("copy or download it again")
    path.unlink()
    assert f"{root / 'data'} lacks train-00001-of-00002.parquet (1 of 2 files)" in complaint(root)
    path.with_name("train-00001-of-00003.parquet").write_bytes(whole)
    assert "has files of several series" in complaint(root)
