"""What slurm/ does on a real SLURM: the scripts, and Hydra's launcher, as a user submits them.

Without SLURM's daemons these tests skip; .ci/run installs them. With -n every process has a cluster of its own.
"""

import csv
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from batch_renorm.durable import LOCK
from batch_renorm.running.checkpoints import checkpoints
from tests.conftest import ROOT, TINY
from tests.running.runs import assert_same_run, curve, train_in_forks
from tests.slurm.cluster import cluster, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

LONG = [*TINY, "size.steps=40", "size.evaluate_every=8"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The repository under another name, so that runs, logs and commands land there and not in the user's."""
    for name in ("train.py", "configs", "slurm", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return tmp_path


def newest(folder: Path) -> str:
    return next((path.name for path in checkpoints(folder)), "")


@pytest.mark.slow
def test_two_nodes_train_one_run_through_a_requeue_and_a_kill(slurm, repository, compose, tmp_path):
    """It ends bit for bit as two ranks do that nothing interrupts."""
    folder, log = tmp_path / "interrupted", tmp_path / "job.log"
    job = slurm.call(
        "sbatch", "--parsable", "--nodes=2", f"--output={log}", "slurm/train.sbatch", *LONG, f"folder={folder}",
        cwd=repository, PYTHON=sys.executable,
    ).strip()  # fmt: skip

    def interrupted(how) -> None:
        """Interrupt the job once it has come forward, and see it run again."""
        start = newest(folder)
        slurm.wait(lambda: newest(folder) > start, f"checkpoint after {start or 'none'}")
        how()
        slurm.start_again(job)

    interrupted(lambda: slurm.call("scontrol", "requeue", job))
    interrupted(lambda: os.kill(json.loads((folder / LOCK).read_text())["process"], signal.SIGKILL))  # rank 0
    train_in_forks(compose(*LONG), tmp_path / "whole", 2)
    slurm.wait(lambda: slurm.job(job)["JobState"] == "COMPLETED", "end of the run")

    assert slurm.job(job)["Restarts"] == "2"
    rows = list(csv.DictReader((folder / "slurm.csv").open()))
    assert [row["event"] for row in rows] == [
        "started", "status 75", "started", "status 137", "started", "status 0",
    ]  # fmt: skip
    assert all(row["ranks"] == "2" and row["job"] == job for row in rows)
    said = log.read_text()
    assert said.count("back to the queue") == 1  # the first time it was SLURM that put it there
    assert said.count("resuming at step") == 2
    assert json.loads((folder / "run.json").read_text())["ranks"] == 2
    assert_same_run(folder, tmp_path / "whole")  # so no row is lost or doubled either


@pytest.mark.slow
def test_an_array_is_repaired_by_the_second_call_and_a_sweep_trains_the_same_runs(slurm, repository):
    """One element of two fails; the call after that submits it alone. Hydra's launcher agrees."""
    tiny, place = [*TINY, "trainer.threads=1"], repository / "runs/glyphs/iid_batchnorm"
    place.mkdir(parents=True)
    (place / "seed1").write_text("in the way of the run's folder")

    def reproduce(*options: str) -> list[str]:
        given = ["--experiments=iid_batchnorm", "--seeds=0,1", *options, *tiny]
        return slurm.call("slurm/reproduce.sh", *given, cwd=repository, PYTHON=sys.executable).splitlines()

    first = reproduce("--hold")
    assert any(line.startswith("to submit: 2 runs") and "--array=0,7%" in line for line in first), first
    assert reproduce()[-1] == "nothing to submit"  # both are queued
    slurm.call("scontrol", "release", first[-1].split()[-1])  # "Submitted batch job 7"
    slurm.wait_for_all()
    assert not (place / "seed1").is_dir()

    (place / "seed1").unlink()
    second = reproduce()
    assert second[0].startswith("finished ")
    assert any(line.startswith("to submit: 1 runs") and "--array=7%" in line for line in second), second

    sweep = ["-m", "hydra/launcher=submitit_slurm", *tiny, "experiment=iid_batchnorm", "seed=0"]
    sweep += ["folder=sweep/seed${seed}", "hydra.launcher.cpus_per_task=1"]
    slurm.call(sys.executable, "train.py", *sweep, cwd=repository)  # waits for it
    assert curve(repository / "sweep/seed0") == curve(place / "seed0")
    slurm.wait_for_all()
    assert json.loads((place / "seed1/run.json").read_text())["state"] == "finished"
