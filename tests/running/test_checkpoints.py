"""What is kept, what is refused, and what a full disk leaves."""

import os
import subprocess

import pytest
import torch

from batch_renorm.records.folder import Folder
from batch_renorm.running.checkpoints import checkpoints, remove_old, step_of
from batch_renorm.running.loggers import CurveLogger
from tests.running.runs import final_state


def test_the_last_two_and_the_best_are_kept(tmp_path):
    """Of equal accuracies the first is the best."""
    run, place = Folder(tmp_path), tmp_path / "checkpoints"
    place.mkdir()
    for step, accuracy, best in ((1, 5, 1), (2, 9, 2), (3, 8, 2), (4, 9, 2), (5, 1, 2), (6, 10, 6)):
        CurveLogger(run.curve).log_metrics({"val_top1": float(accuracy)}, step)
        torch.save({}, place / f"step{step:08d}.ckpt")
        remove_old(run)
        assert {step_of(path) for path in checkpoints(tmp_path)} == {step, step - 1, best} - {0}
        assert step_of(place / "best.ckpt") == best
        assert (place / "best.ckpt").exists()


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_keeps_its_last_checkpoint(train_command, small_disk):
    """The first checkpoint fits nine megabytes, the second does not."""
    options = ["size.steps=6", "model.head=336", "model.head_layers=2", f"folder={small_disk}/run"]
    done = train_command(*options, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in line
    assert f"{small_disk}/run/checkpoints/step00000004.ckpt cannot be written" in line
    assert "Traceback" not in done.stderr
    assert [path.name for path in checkpoints(small_disk / "run")] == ["step00000002.ckpt"]
    assert not list(small_disk.rglob("*.part"))
    final_state(small_disk / "run")  # loads
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert "resuming at step 2" in train_command(*options).stderr
