"""The store: same images, other readers, interrupted and damaged ones."""

import shutil
from pathlib import Path

import pytest

from batch_renorm import durable
from batch_renorm.data import store
from batch_renorm.data.sources import find
from batch_renorm.errors import UserError
from tests.data.imagenet_files import cut_in_half, write_folders
from tests.data.test_sources import both, contents
from tests.test_durable import in_use_by_another

SCRIPT = "scripts/prepare_imagenet.py"


def prepare(source, target, progress=lambda images: None, threads=1, images_per_file=5):
    store.prepare(find(source), target, images_per_file, threads, progress)


@pytest.mark.parametrize("kind", ["archives", "arrow", "parquet"])
def test_a_store_holds_the_same_images_whatever_it_is_made_of(folders, written, tmp_path, kind):
    prepare(written[kind], tmp_path / "store")
    assert both(find(tmp_path / "store")) == both(find(folders))


def test_a_store_opens_as_a_hugging_face_data_set(folders, written):
    import datasets

    opened, found = datasets.load_from_disk(str(written["store"])), find(folders)
    assert opened["train"].features["label"].names == found.classes
    raw = opened["validation"].cast_column("image", datasets.Image(decode=False))
    assert [(row["label"], row["image"]["bytes"]) for row in raw] == contents(found, "val")
    assert opened["train"][0]["image"].size == (80, 60)


def test_an_interrupted_store_goes_on_where_it_was(folders, tmp_path):
    prepare(folders, tmp_path / "whole", images_per_file=1)
    target = tmp_path / "part"

    class Stopped(Exception):
        pass

    def stop(images):
        if len(list(target.glob("*/*.arrow"))) >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(folders, target, stop, images_per_file=1)
    with pytest.raises(UserError, match=r"is not finished: run scripts/prepare_imagenet.py again"):
        find(target)
    before = {path: path.stat().st_mtime_ns for path in target.glob("*/*.arrow")}
    assert 2 <= len(before) < 20
    seen = []
    prepare(folders, target, seen.append, 2, images_per_file=1)
    assert sum(seen) == 20
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    whole, part = ({p.relative_to(r): p.read_bytes() for p in r.rglob("*.*")} for r in (tmp_path / "whole", target))
    assert part == whole


def test_unreadable_images_are_all_named_and_cured_by_the_same_command(tmp_path, capfd):
    source = write_folders(tmp_path / "source")
    files = [find(source).splits["train"].name(index) for index in (2, 7)]
    good = {name: cut_in_half(name) for name in files}
    with pytest.raises(UserError, match=r"^2 of the images cannot be read") as error:
        prepare(source, tmp_path / "store")
    assert all(name in str(error.value) and name in capfd.readouterr().err + str(error.value) for name in files)
    for name, data in good.items():
        Path(name).write_bytes(data)
    prepare(source, tmp_path / "store")
    assert contents(find(tmp_path / "store"), "train") == contents(find(source), "train")


def test_another_store_or_folder_is_not_written_into(folders, written, tmp_path):
    target = shutil.copytree(written["store"], tmp_path / "store")
    prepare(folders, target)
    prepare(written["archives"], target)  # the same images, stored otherwise
    with pytest.raises(
        UserError, match=r"or has another number of images a file \(--images-per-file\): choose another folder"
    ):
        prepare(folders, target, images_per_file=6)
    other = shutil.copytree(folders, tmp_path / "other")
    first = next((other / "train/n01440764").iterdir())
    for name in ("n01440764_19.JPEG", "n01440764_1.JPEG"):  # another under the same name, or one more
        first.with_name(name).write_bytes(first.read_bytes() + b"more")
        with pytest.raises(UserError, match="is the store of other images"):
            prepare(other, target)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and not a store"):
        prepare(folders, tmp_path / "home")


def test_one_process_at_a_time_prepares_a_store(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "GRACE", 0.1)
    (tmp_path / "store").mkdir()
    with (
        in_use_by_another(tmp_path / "store") as process,
        pytest.raises(UserError, match=f"store {tmp_path / 'store'} is in use by process {process.pid} on .* since"),
    ):
        prepare(folders, tmp_path / "store")
    prepare(folders, tmp_path / "store")
    assert not list((tmp_path / "store").rglob(".lock"))


def test_the_command_writes_a_store(run_script, written, tmp_path):
    """In a log file, without a terminal, the progress is lines."""
    code, out, err = run_script(SCRIPT, written["archives"], tmp_path / "store")
    assert code == 2
    assert "has 4 classes, ILSVRC-2012 has 1,000" in err
    code, out, err = run_script(SCRIPT, written["archives"], tmp_path / "store", "--any-counts", "--images-per-file=5")
    assert code == 0, err
    assert "archives: 4 classes, 12 training images, 8 validation images" in out
    assert "writing: 20.0 of 20.0 images" in err
    assert find(tmp_path / "store").kind == "Arrow files"
