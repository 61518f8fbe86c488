"""What slurm/reproduce.sh prints and submits, with stand-ins for SLURM's commands."""

import json
import os
import re
import subprocess
import sys

import pytest

from batch_renorm.reporting.paper import EXPERIMENTS
from tests.conftest import ROOT

SEVEN = sorted(EXPERIMENTS)


@pytest.fixture
def reproduce(tmp_path, monkeypatch, run_script):
    """Run reproduce.py in a repository of its own: status, output, error. `queue` is what squeue answers."""
    for name in ("train.py", "configs", "slurm", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("squeue", 'printf "$QUEUE"'), ("sbatch", f'printf "%s\\n" "$@" >>{tmp_path}/sbatch')):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, queue=""):
        monkeypatch.setenv("QUEUE", queue)
        return run_script("slurm/reproduce.py", *arguments)

    return run


def test_dry_run_prints_every_command(tmp_path):
    """No SLURM is needed, nor a folder."""
    command = ["slurm/reproduce.sh", "--dry-run", "--seeds=3", "--nodes=2", "scale=imagenet"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHON": f"env PATH= {sys.executable}"}
    done = subprocess.run([*command, "data.root=/a b"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [re.split(" {2,}", line) for line in done.stdout.splitlines()]
    assert rows[:-1] == [
        ["new", f"python train.py experiment={name} seed=3 scale=imagenet 'data.root=/a b'"] for name in SEVEN
    ]
    assert "to submit: 7 runs: sbatch" in done.stdout
    assert f"--nodes=2 slurm/train.sbatch @{','.join(SEVEN)} scale=imagenet 'data.root=/a b'" in done.stdout


def test_what_is_finished_or_queued_is_left_and_the_rest_submitted(reproduce, tmp_path):
    """Elements are seed * 7 + experiment."""
    place = tmp_path / "runs/glyphs/iid_batchnorm"
    for seed, state, step in ((0, "finished", 3600), (2, "stopped", 1800)):
        (place / f"seed{seed}").mkdir(parents=True)
        (place / f"seed{seed}/run.json").write_text(json.dumps({"state": state, "step": step}))
    given = ["--experiments=iid_batchnorm,iid_renorm", "--at-once=2", "--time=1:00:00"]
    _, out, _ = reproduce(*given, "optim.lr=1", "size.steps=3600", queue=r"7 RUNNING 50_7\n8 PENDING 50_8\n")
    rows = [re.split(" +python train.py experiment=", line) for line in out.splitlines() if "train.py" in line]
    assert [(state, command.split()[:2]) for state, command in rows] == [
        ("finished", ["iid_batchnorm", "seed=0"]),
        ("new", ["iid_renorm", "seed=0"]),
        ("running as 50_7", ["iid_batchnorm", "seed=1"]),
        ("pending as 50_8", ["iid_renorm", "seed=1"]),
        ("stopped, 1800/3600", ["iid_batchnorm", "seed=2"]),
        ("new", ["iid_renorm", "seed=2"]),
    ]
    words = (tmp_path / "sbatch").read_text().splitlines()
    assert {"--array=1,14,15%2", "--time=1:00:00"} <= set(words)
    assert words[-4:] == ["slurm/train.sbatch", f"@{','.join(SEVEN)}", "optim.lr=1", "size.steps=3600"]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--experiments=iid_renrom"], "no experiment iid_renrom of the paper's"),
        (["--seeds=all"], "--seeds=all must be like --seeds="),
        (["--seeds=0,-1"], "--seeds=0,-1 must be like --seeds="),
        (["--at-once=0"], "--at-once=0 must be like --at-once="),
        (["-N", "2"], "-N: options of sbatch are --name=value"),
        (["--array=0-3"], "--array=0-3: options of sbatch are"),
        (["scale=imagenet"], "every run needs data.root=..."),
        (["seed=3"], "seed=3: --experiments and --seeds choose"),
        (["folder=runs/x", "--seeds=0", "--experiments=iid_renorm,iid_batchnorm"], "several runs have the same folder"),
        (["sede=3"], "no option sede; did you mean seed"),
        (["--experiments=iid_renorm"], "iid_renorm/seed0 holds a run of another config; it differs in average.decay, "),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_said_in_one_line(reproduce, tmp_path, arguments, answer):
    place = tmp_path / "runs/glyphs/iid_renorm/seed0"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("size: {steps: 7}")
    status, out, err = reproduce(*arguments)
    (line,) = err.splitlines()
    assert status == 2
    assert line.startswith("error: ")
    assert answer in line
    assert not out
    assert not (tmp_path / "sbatch").exists()
