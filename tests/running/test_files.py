"""Runs on files of images."""

import re

import pytest

from batch_renorm.records.curve import read_rows
from batch_renorm.records.folder import Folder
from tests.conftest import TINY
from tests.data import imagenet_files
from tests.running.forked import train_in_forks, trained

FILES = [
    *[override for override in TINY if not override.startswith("data.")],
    "scale=imagenet", "data=folder", "minibatch.size=4", "minibatch.group=4", "size.steps=1",
    "evaluation.labels_per_minibatch=2", "size.evaluation_batch=4", "size.train_sample=4", "trainer.workers_per_pass=1",
]  # fmt: skip
"""The paper's scale on files, shrunk in steps, workers and images."""


def last_values(folder):
    return {metric: value for _, metric, value in read_rows(folder.curve)}


@pytest.mark.slow
def test_real_files_give_the_same_curve_from_folders_and_from_a_store(run_script, compose, tmp_path):
    """A network of timm on JPEG files: two ranks with loader processes on folders, one on a store."""
    folders = imagenet_files.write_folders(tmp_path / "folders", per_class=2)
    code, _, err = run_script("scripts/prepare_imagenet.py", folders, tmp_path / "store", "--any-counts")
    assert code == 0, err
    small = [*FILES, "model=timm", "model.name=test_resnet", "data.size=64"]
    statuses, out, err = train_in_forks(
        compose(*small, "trainer.loader_processes=1", f"data.root={folders}", f"folder={tmp_path}/run"), 2
    )
    assert statuses == [0, 0], err
    assert re.search(r"a step takes [\d.e-]+ s, of which \d+% waits for images", " ".join(out.split()))
    alone = trained(compose(*small, f"data.root={tmp_path / 'store'}"), tmp_path / "alone")
    curves = [last_values(Folder(tmp_path / "run")), last_values(alone)]
    assert {"seconds_step", "seconds_wait"} <= set(curves[0])
    measured = [{k: v for k, v in c.items() if not k.startswith(("seconds_", "images_per_"))} for c in curves]
    assert measured[0] == pytest.approx(measured[1], rel=1e-3)
    assert {"loss", "val_top1", "train_top1"} <= set(measured[0])
