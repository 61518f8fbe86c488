"""A killed run, run again, ends as if nothing had happened: bit-equal weights and the same curve."""

import shutil

import numpy as np
import pytest
import torch

from batch_renorm.errors import UserError
from batch_renorm.records.config import differences
from batch_renorm.records.folder import Folder
from batch_renorm.running.checkpoints import checkpoints
from batch_renorm.running.folder import check_data, move_aside, prepare_folder
from tests.running.runs import assert_same_run, final_state


@pytest.mark.slow
def test_other_loader_processes_resume_the_same_run(train_command, tmp_path):
    """Contract 1 across loader processes, from the newest checkpoint that is not damaged."""
    long = ["size.steps=12", "size.evaluate_every=4"]
    train_command(*long, folder="whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    newest = checkpoints(tmp_path / "other")[0]
    newest.write_bytes(newest.read_bytes()[:-1000])  # as a full disk or a torn copy leaves it
    record = tmp_path / "other/run.json"
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    again = train_command(*long, "trainer.loader_processes=2", folder="other")
    assert f"{newest} is damaged: falling back to" in " ".join(again.stderr.split())
    assert "resuming at step 8" in again.stderr
    assert_same_run(tmp_path / "other", tmp_path / "whole")


def test_images_may_move_but_not_change(tmp_path):
    """data.root is where a store is; what it holds is noted, so that a resume does not go on with other images."""
    old = {"optim": {"lr": 1}, "data": {"root": "/a", "size": 8}, "dataset": "a", "size": {"evaluate_every": 1}}
    new = old | {"data": {"root": "/b", "size": 8}, "dataset": "b", "size": {"evaluate_every": 2}}
    assert differences(old, new) == []
    folder, labels = Folder(tmp_path), {"train": np.arange(6), "val": np.arange(3)}
    prepare_folder(folder, new)
    check_data(folder, labels)
    check_data(folder, {split: of.copy() for split, of in labels.items()})
    for other in (np.arange(7), np.arange(6)[::-1].copy()):
        with pytest.raises(UserError, match=r"other images or labels .6 for train and 3 for val."):
            check_data(folder, labels | {"train": other})


def test_move_aside_never_overwrites(tmp_path):
    for _ in range(3):
        (tmp_path / "run").mkdir()
        move_aside(tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.old", "run.old2", "run.old3"]


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(train_command, tmp_path):
    """The rate turns bad after the first checkpoint (a factor from step 4 on)."""
    bad = ["size.steps=12", "size.evaluate_every=4", "optim.lr_decay=1e30", "optim.lr_decay_steps=5"]
    done = train_command(*bad, check=False)
    assert done.returncode == 2
    assert "The layer with the largest moving statistics is '" in done.stderr
    assert "Warning" not in done.stderr
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step00000004.ckpt"]
    assert all(torch.isfinite(value).all() for value in final_state(tmp_path / "run").values())
    assert '"state": "stopped"' in (tmp_path / "run/run.json").read_text()
