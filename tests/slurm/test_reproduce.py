"""The plan that slurm/reproduce.sh prints and submits, with stand-ins for SLURM's commands."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml

from batch_renorm.reporting.paper import EXPERIMENTS
from tests.conftest import ROOT

SEVEN = sorted(EXPERIMENTS)


@pytest.fixture
def reproduce(tmp_path):
    """Run reproduce.sh in a repository of its own; `queue` is what squeue answers."""
    for name in ("train.py", "configs", "slurm", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("squeue", 'printf "$QUEUE"'), ("sbatch", f'echo "$@" >>{tmp_path}/sbatch; echo 77')):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)

    def run(*arguments: str, queue: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src"), "PYTHON": sys.executable,
            "QUEUE": queue,
        }  # fmt: skip
        done = subprocess.run(
            ["slurm/reproduce.sh", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == (0 if check else 2), done.stderr
        return done

    return run


def test_dry_run_prints_every_command_and_its_gpu_hours(reproduce, tmp_path):
    """140,000 steps of 1,600 images at 800 images/s are 77.8 hours, 21 times."""
    done = reproduce("--dry-run", "--images-per-second=800", "--nodes=2", "scale=imagenet", "data.root=/a b")
    commands = [line for line in done.stdout.splitlines() if "python train.py" in line]
    assert [line.split(maxsplit=2) for line in commands] == [
        ["new", "77.8", f"python train.py experiment={experiment} seed={seed} scale=imagenet 'data.root=/a b'"]
        for seed in range(3)
        for experiment in SEVEN
    ]
    assert "at 800 images/s a GPU, as given" in done.stdout
    assert "to submit: 21 runs, 1633.3 GPU-hours: sbatch" in done.stdout
    assert "--nodes=2 slurm/train.sbatch @runs/slurm/reproduce-imagenet-" in done.stdout
    assert not (tmp_path / "sbatch").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_dry_run_says_how_even_the_ranks_are(reproduce):
    """8 ranks take 7 of 6.25 workers in the mean: 77.8 hours become 87.1."""
    uneven = ["--nodes=1", "--gpus-per-node=h100:8"]
    for options, hours, words in (
        (uneven, "87.1", "busy 89% of a step, while 7 are computed; 10 or 5 ranks would be busy all of it"),
        (["--nodes=2", "--ntasks-per-node=5"], "77.8", "50 workers on 10 ranks: busy all of a step"),
        (["--nodes=2-4"], "77.8", "evaluations come on top"),
    ):
        done = reproduce(
            "--dry-run", "--images-per-second=800", "--seeds=0", *options, "scale=imagenet", "data.root=/a"
        )
        assert done.stdout.splitlines()[1].split()[1] == hours
        assert words in done.stdout
    refused = reproduce("--dry-run", "--nodes=7", "--gpus-per-node=8", "scale=imagenet", "data.root=/a", check=False)
    assert "56 ranks but only 50 workers a step" in refused.stderr


def test_what_is_finished_or_queued_is_left_and_the_rest_submitted(reproduce, tmp_path):
    """Elements are seed * 7 + experiment; the hours are what the finished run has measured."""
    place = tmp_path / "runs/glyphs/iid_batchnorm"
    record = {"state": "finished", "step": 3600, "steps": 3600, "wall_seconds": 288, "ranks": 2, "device": "a GPU"}
    stopped = {"state": "stopped", "step": 1800, "steps": 3600, "wall_seconds": 144, "ranks": 2, "device": "a GPU"}
    for seed, entries in ((0, record), (2, stopped)):
        (place / f"seed{seed}").mkdir(parents=True)
        (place / f"seed{seed}/run.json").write_text(json.dumps(entries))
    given = ["--experiments=iid_batchnorm,iid_renorm", "--seeds=0,1,2", "--at-once=2", "--time=1:00:00"]
    done = reproduce(*given, "optim.lr=1", "size.steps=3600", queue=r"7 RUNNING 50_7\n8 PENDING 50_8\n")
    rows = [line.split("python train.py ") for line in done.stdout.splitlines() if "python train.py" in line]
    # 3600 steps of 64 images in 288 s on 2 ranks: 400 images/s a rank; 3600 * 64 / 400 s = 0.16 h
    assert [(" ".join(left.split()), right.split()[:2]) for left, right in rows] == [
        ("finished -", ["experiment=iid_batchnorm", "seed=0"]),
        ("new 0.2", ["experiment=iid_renorm", "seed=0"]),
        ("running as 50_7, 0/3600 0.2", ["experiment=iid_batchnorm", "seed=1"]),
        ("pending as 50_8, 0/3600 0.2", ["experiment=iid_renorm", "seed=1"]),
        ("stopped, 1800/3600 0.1", ["experiment=iid_batchnorm", "seed=2"]),
        ("new 0.2", ["experiment=iid_renorm", "seed=2"]),
    ]
    assert "at 400 images/s a rank, evaluations included" in done.stdout
    assert "3,600 steps in 0.08 h on 2 x a GPU" in done.stdout
    words = (tmp_path / "sbatch").read_text().split()
    assert {"--array=1,14,15%2", "--time=1:00:00", "--parsable"} <= set(words)
    lines = (tmp_path / words[-1].removeprefix("@")).read_text().splitlines()
    assert len(lines) == 16
    assert lines[14] == "experiment=iid_batchnorm seed=2 optim.lr=1 size.steps=3600"
    assert [number for number, line in enumerate(lines) if line] == [1, 14, 15]


@pytest.fixture
def complaint(tmp_path, monkeypatch, capsys):
    """What slurm/plan.py, which reproduce.sh calls, says to wrong arguments."""
    specification = importlib.util.spec_from_file_location("plan", ROOT / "slurm/plan.py")
    plan = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "plan", plan)  # where its dataclass looks itself up
    specification.loader.exec_module(plan)

    def of(*arguments):
        monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stopped, plan.explained():
            plan.main()
        assert stopped.value.code == 2
        printed = capsys.readouterr()
        assert not printed.out
        (line,) = printed.err.splitlines()
        return line

    return of


def test_a_run_of_another_config_does_not_pass_for_finished(complaint, tmp_path):
    place = tmp_path / "runs/glyphs/iid_renorm/seed0"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump({"size": {"steps": 7}}))
    (place / "run.json").write_text('{"state": "finished"}')
    line = complaint("--experiments=iid_renorm", "--seeds=0")
    assert "holds a run of another config" in line
    assert "size.steps" in line


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--experiments=iid_renrom"], "no experiment iid_renrom of the paper's"),
        (["--seeds=all"], "--seeds=all: give whole numbers"),
        (["--images-per-second=0"], "must be above 0"),
        (["scale=imagenet"], "every run needs data.root=..."),
        (["seed=3"], "seed=3: the plan chooses"),
        (["folder=runs/x", "--seeds=0"], "several runs have the same folder"),
        (["sede=3"], "no option sede; did you mean seed"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(complaint, arguments, answer):
    line = complaint(*arguments)
    assert line.startswith("error: ")
    assert answer in line


@pytest.mark.parametrize("arguments", [["-N", "2"], ["--array=0-3"]])
def test_options_that_the_array_does_not_take_are_refused(reproduce, tmp_path, arguments):
    refused = reproduce(*arguments, check=False)
    assert refused.stderr.startswith(f"error: {arguments[0]}: ")
    assert not (tmp_path / "sbatch").exists()
