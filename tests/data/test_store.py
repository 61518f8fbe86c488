"""The store: same images, other readers, interrupted and damaged ones."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from batch_renorm import durable
from batch_renorm.data import store
from batch_renorm.data.sources import find
from batch_renorm.errors import UserError
from tests.data.imagenet_files import cut_in_half, write_folders
from tests.data.test_sources import contents
from tests.test_durable import in_use_by_another

SCRIPT = "scripts/prepare_imagenet.py"


def prepare(source, target, progress=lambda images: None, processes=1, images_per_file=5):
    store.prepare(find(source), target, images_per_file, processes, progress)


def check(target):
    store.check(find(target), 1, lambda images: None)


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """A store, which tests copy before they change it."""
    target = tmp_path_factory.mktemp("made") / "store"
    prepare(folders, target)
    return target


@pytest.fixture
def target(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


@pytest.mark.parametrize("kind", ["archives", "arrow", "parquet", "kaggle"])
def test_a_store_holds_the_same_images_whatever_it_is_made_of(folders, written, tmp_path, kind):
    prepare(written[kind], tmp_path / "store")
    found, expected = find(tmp_path / "store"), find(folders)
    for split in ("train", "val"):
        assert contents(found, split) == contents(expected, split)
    check(tmp_path / "store")


def test_a_store_opens_as_a_hugging_face_data_set(folders, made):
    import datasets

    opened, found = datasets.load_from_disk(str(made)), find(folders)
    assert opened["train"].features["label"].names == found.classes
    raw = opened["validation"].cast_column("image", datasets.Image(decode=False))
    assert [(row["label"], row["image"]["bytes"]) for row in raw] == contents(found, "val")
    assert opened["train"][0]["image"].size == (80, 60)


def test_an_interrupted_store_goes_on_where_it_was(folders, tmp_path, monkeypatch):
    prepare(folders, tmp_path / "whole", images_per_file=1)

    class Stopped(Exception):
        pass

    def stop(images):
        if len(list(tmp_path.glob("part/*/*.arrow"))) >= 2:
            raise Stopped

    with monkeypatch.context() as patch:  # else all is done before it is stopped
        decode = store.decode
        patch.setattr(store, "decode", lambda data: (time.sleep(0.05), decode(data))[1])
        with pytest.raises(Stopped):
            prepare(folders, tmp_path / "part", stop, images_per_file=1)
    with pytest.raises(UserError, match=r"is not finished: run scripts/prepare_imagenet.py again"):
        find(tmp_path / "part")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "part").glob("*/*.arrow")}
    assert 2 <= len(before) < 20
    seen = []
    prepare(folders, tmp_path / "part", seen.append, 2, images_per_file=1)
    assert sum(seen) == 20
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")}
    assert {path.relative_to(tmp_path / "part") for path in (tmp_path / "part").rglob("*")} == files
    for file in files:
        if (tmp_path / "whole" / file).is_file():
            assert (tmp_path / "part" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


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


def test_a_changed_store_is_noticed(target):
    shard = target / "train/data-00001-of-00003.arrow"
    data, image = bytearray(shard.read_bytes()), find(target).splits["train"].read(6)
    place = data.index(image) + len(image) // 2
    for change, at in ((1, place), (1, data.rindex(b"n03000684_29.JPEG") + 8)):  # in an image, in a name
        data[at] ^= change
        shard.write_bytes(data)
        with pytest.raises(UserError, match=r"^1 of the images cannot be read, .* its bytes are not those that were"):
            check(target)
        data[at] ^= change
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"data-00001-of-00003.arrow is not a whole Arrow file .*: copy or download it"):
        find(target)
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot read .*data-00001-of-00003.arrow: No such file or directory; copy"):
        find(target)
    shutil.copy(target / "train/data-00002-of-00003.arrow", shard)
    with pytest.raises(UserError, match=r"train has 9 images, not 12: copy or download it again"):
        find(target)


def test_another_store_or_folder_is_not_written_into(folders, written, target, tmp_path):
    prepare(folders, target)
    prepare(written["archives"], target)  # the same images, stored otherwise
    with pytest.raises(UserError, match=r"has 5 images a file: say so with --images-per-file"):
        prepare(folders, target, images_per_file=6)
    other = shutil.copytree(folders, tmp_path / "other")
    first = next((other / "train/n01440764").iterdir())
    for name in ("n01440764_1.JPEG", "n01440764_19.JPEG"):  # one more, or another under the same name
        first.with_name(name).write_bytes(first.read_bytes() + b"more")
        with pytest.raises(UserError, match="is the store of other images, or in another order: choose another folder"):
            prepare(other, target)
        if name.endswith("_1.JPEG"):
            first.with_name(name).unlink()
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


def test_a_worker_that_is_killed_is_one_line(folders, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "decode", lambda data: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(UserError, match="a process that works on the images was killed") as error:
            prepare(folders, tmp_path / "store")
    assert "\n" not in str(error.value)
    prepare(folders, tmp_path / "store")


def test_workers_end_with_the_process_that_started_them(folders, tmp_path, monkeypatch):
    def slow(data):
        (tmp_path / "worker").write_text(str(os.getpid()))
        time.sleep(3600)

    monkeypatch.setattr(store, "decode", slow)
    parent = multiprocessing.get_context("fork").Process(target=prepare, args=(folders, tmp_path / "store"))
    parent.start()
    while not (tmp_path / "worker").exists() or not (worker := (tmp_path / "worker").read_text()):
        time.sleep(0.01)
    parent.kill()
    parent.join()
    while state_of(worker) not in ("Z", None):  # a worker that lives on is a test that does not end
        time.sleep(0.01)


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_the_command_writes_and_checks(run_script, written, tmp_path):
    """In a log file, without a terminal, the progress is lines."""
    code, out, err = run_script(SCRIPT, written["archives"], tmp_path / "store")
    assert code == 2
    assert "has 4 classes, ILSVRC-2012 has 1,000" in err
    code, out, err = run_script(SCRIPT, written["archives"], tmp_path / "store", "--any-counts", "--images-per-file=5")
    assert code == 0, err
    assert "archives: 4 classes, 12 training images, 8 validation images" in out
    assert "writing: 20.0 of 20.0 images" in err
    assert json.loads((tmp_path / "store/store.json").read_text())["images"] == {"train": 12, "validation": 8}
    code, out, err = run_script(SCRIPT, "--check", tmp_path / "store")
    assert code == 0, err
    assert "a store: 4 classes, 12 training images, 8 validation images" in out
    assert f"{tmp_path / 'store'} is whole" in out
    code, _, err = run_script(SCRIPT, "--check", tmp_path / "store", tmp_path / "other")
    assert code == 2
    assert "--check and the store alone" in err
