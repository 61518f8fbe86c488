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
from batch_renorm.data import shards, store
from batch_renorm.data.sources import find
from tests.data.imagenet_files import cut_in_half, write_folders
from tests.data.test_sources import contents
from tests.test_durable import in_use_by_another

SCRIPT = "scripts/prepare_imagenet.py"


def prepare(source, target, progress=lambda images: None, processes=1, images_per_file=5):
    return store.prepare(find(source), target, images_per_file, processes, progress)


@pytest.mark.parametrize("kind", ["archives", "arrow", "parquet", "kaggle"])
def test_a_store_holds_the_same_images_whatever_it_is_made_of(folders, written, tmp_path, kind):
    prepare(written[kind], tmp_path / "store")
    found, expected = find(tmp_path / "store"), find(folders)
    for split in ("train", "val"):
        assert contents(found, split) == contents(expected, split)
    store.check(tmp_path / "store", 1, lambda images: None)


def test_a_store_opens_as_a_hugging_face_data_set(folders, tmp_path):
    import datasets

    prepare(folders, tmp_path / "store")
    opened = datasets.load_from_disk(str(tmp_path / "store"))
    found = find(folders)
    assert opened["train"].features["label"].names == found.classes
    raw = opened["validation"].cast_column("image", datasets.Image(decode=False))
    assert [(row["label"], row["image"]["bytes"]) for row in raw] == contents(found, "val")
    assert opened["train"][0]["image"].size == (80, 60)


def test_kinds_of_images_are_counted(folders, tmp_path):
    manifest = prepare(folders, tmp_path / "store")
    kinds = [shard["kinds"] for shard in manifest["splits"]["train"]["shards"]]
    total = {kind: sum(k.get(kind, 0) for k in kinds) for kind in ("JPEG", "CMYK JPEG", "PNG")}
    assert total == {"JPEG": 10, "CMYK JPEG": 1, "PNG": 1}


def test_an_interrupted_store_goes_on_where_it_was(folders, tmp_path, monkeypatch):
    whole = prepare(folders, tmp_path / "whole", images_per_file=1)

    class Stopped(Exception):
        pass

    def stop(images):
        if len(list(tmp_path.glob("part/*/*.arrow"))) >= 2:
            raise Stopped

    decode = shards.decoding.decode
    monkeypatch.setattr(shards.decoding, "decode", lambda data: (time.sleep(0.05), decode(data))[1])  # else all is done
    with pytest.raises(Stopped):
        prepare(folders, tmp_path / "part", stop, images_per_file=1)
    with pytest.raises(ValueError, match=r"is not finished: run scripts/prepare_imagenet.py again"):
        find(tmp_path / "part")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "part").glob("*/*.arrow")}
    assert 2 <= len(before) < 20
    seen = []
    assert prepare(folders, tmp_path / "part", seen.append, 2, images_per_file=1) == whole
    assert sum(seen) == 20
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert (tmp_path / "part" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert {p.name for p in (tmp_path / "part").rglob("*")} == {p.name for p in (tmp_path / "whole").rglob("*")}


def test_unreadable_images_are_all_named_and_cured_by_the_same_command(tmp_path):
    source = write_folders(tmp_path / "source")
    files = [find(source).splits["train"].name(index) for index in (2, 7)]
    good = {name: cut_in_half(name) for name in files}
    with pytest.raises(ValueError, match="2 of the images cannot be read") as error:
        prepare(source, tmp_path / "store")
    assert all(name in str(error.value) for name in files)
    for name, data in good.items():
        Path(name).write_bytes(data)
    prepare(source, tmp_path / "store")
    assert contents(find(tmp_path / "store"), "train") == contents(find(source), "train")


def test_a_changed_store_is_noticed(folders, tmp_path):
    target = tmp_path / "store"
    prepare(folders, target)
    shard = sorted((target / "train").glob("*.arrow"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    find(target)  # as long as it was: only --check reads it all
    with pytest.raises(ValueError, match=r"data-00001-of-00003.arrow: its bytes are not those that were written"):
        store.check(target, 1, lambda images: None)
    shard.write_bytes(data[:-8])
    with pytest.raises(ValueError, match=r"data-00001-of-00003.arrow has [\d,]+ bytes, not [\d,]+: copy it again"):
        find(target)
    shard.unlink()
    with pytest.raises(ValueError, match=r"the store lacks .*data-00001-of-00003.arrow"):
        find(target)


def test_another_store_or_folder_is_not_written_into(folders, tmp_path):
    prepare(folders, tmp_path / "store")
    with pytest.raises(ValueError, match=r"has 5 images a file: say --images-per-file 5, or choose another folder"):
        store.prepare(find(folders), tmp_path / "store", 6, 1, lambda images: None)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and not a store"):
        prepare(folders, tmp_path / "home")


def copied(folders, tmp_path):
    return Path(shutil.copytree(folders, tmp_path / "other"))


def test_a_store_is_told_from_that_of_other_images(folders, written, tmp_path):
    prepare(folders, tmp_path / "store")
    prepare(written["archives"], tmp_path / "store")  # the same images, stored otherwise
    with pytest.raises(ValueError, match="whose classes have other names"):
        prepare(written["arrow"], tmp_path / "store")
    other = copied(folders, tmp_path)
    first = other / "train/n01440764/n01440764_19.JPEG"
    data = first.read_bytes()
    first.write_bytes(data + b"more")  # the first image of a file, under the same name
    with pytest.raises(ValueError, match=f"has another image than {first} under its name"):
        prepare(other, tmp_path / "store")
    first.rename(first.with_name("n01440764_18.JPEG"))
    with pytest.raises(ValueError, match="images with other names"):
        prepare(other, tmp_path / "store")
    shutil.rmtree(other / "train/n15075141")
    (other / "train/n15075141").mkdir()
    (other / "train/n15075141/n15075141_1.JPEG").write_bytes(data)
    with pytest.raises(ValueError, match=r"is the store of other images, or in another order \(it is made of folders"):
        prepare(other, tmp_path / "store")


def test_one_process_at_a_time_prepares_a_store(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "GRACE", 0.1)
    (tmp_path / "store").mkdir()
    with (
        in_use_by_another(tmp_path / "store") as process,
        pytest.raises(ValueError, match=f"store {tmp_path / 'store'} is in use by process {process.pid} on .* since"),
    ):
        prepare(folders, tmp_path / "store")
    prepare(folders, tmp_path / "store")
    assert not list((tmp_path / "store").rglob(".lock"))


def killed_worker(target, shard):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_line(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write", killed_worker)
    with pytest.raises(ValueError, match="a process that works on the images was killed") as error:
        prepare(folders, tmp_path / "store")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    prepare(folders, tmp_path / "store")


def slow_worker(target, shard):
    (target / f"{shard.split}{shard.number}.pid").write_text(str(os.getpid()))
    time.sleep(3600)


def test_workers_end_with_the_process_that_started_them(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write", slow_worker)
    parent = multiprocessing.get_context("fork").Process(target=prepare, args=(folders, tmp_path / "store"))
    parent.start()
    while not (notes := [note for note in (tmp_path / "store").glob("*.pid") if note.read_text()]):
        time.sleep(0.01)
    worker = int(notes[0].read_text())
    parent.kill()
    parent.join()
    while state_of(worker) not in ("Z", None):  # a worker that lives on is a test that does not end
        time.sleep(0.01)


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def test_labels_that_have_changed_are_noticed(folders, tmp_path):
    target = tmp_path / "store"
    manifest = prepare(folders, target)
    manifest["splits"]["train"]["labels_crc32"] ^= 1
    (target / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"the labels in {target / 'train'} are not those that were written"):
        find(target)


def test_a_full_disk_is_noticed_before_anything_is_written(folders, tmp_path, monkeypatch):
    usage = store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"needs about 0.0 GB, and 0.0 GB are free there"):
        prepare(folders, tmp_path / "store")


def test_the_command_writes_and_checks(run_script, written, tmp_path):
    code, out, err = run_script(SCRIPT, written["archives"], tmp_path / "store")
    assert code == 2
    assert "has 4 classes, ILSVRC-2012 has 1,000" in err
    counts = ["--classes=4", "--train=12", "--val=8"]
    code, out, err = run_script(SCRIPT, written["archives"], tmp_path / "store", *counts, "--images-per-file=5")
    assert code == 0, err
    assert "archives: 4 classes, 12 training images, 8 validation images" in out
    assert "in 5 files; 18 JPEG, 1 CMYK JPEG, 1 PNG" in out or "in 5 files; 18 JPEG, 1 PNG, 1 CMYK JPEG" in out
    manifest = json.loads((tmp_path / "store/store.json").read_text())
    assert manifest["finished"]
    code, out, err = run_script(SCRIPT, "--check", tmp_path / "store", *counts)
    assert code == 0, err
    assert "is as it was written" in out
