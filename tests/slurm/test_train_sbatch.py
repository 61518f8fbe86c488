"""What slurm/train.sbatch decides, with stand-ins for SLURM's commands: no cluster needed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("setsid") is None, reason="train.sbatch is for Linux: no setsid here")

SRUN = """#!/bin/bash
echo "$@" >>"$CALLS/srun"
while [[ $1 == --* ]]; do shift; done
if [[ " $* " == *" --cfg "* ]]; then echo "$FOLDER"; exit "${COMPOSED:-0}"; fi
if [[ $1 == bash ]]; then exec "$@"; fi
echo "$MASTER_ADDR $OMP_NUM_THREADS" >"$CALLS/environment"
eval "${DURING:-}"
exit "$STATUS"
"""
SCONTROL = """#!/bin/bash
case $* in
    requeue*) echo "$2" >>"$CALLS/requeued" ;;
    "show hostnames"*) printf 'alpha\\nbeta\\n' ;;
    "show node"*) echo "NodeName=alpha Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=alpha" ;;
    "show job"*) echo "JobId=42 JobState=$STATE Reason=$REASON WorkDir=/" ;;
esac
"""


@pytest.fixture
def submit(tmp_path):
    """Run the script as SLURM would; returns the finished process."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    calls.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    spooled = tmp_path / "slurm_script"  # SLURM runs a copy from its own place
    spooled.write_text((ROOT / "slurm/train.sbatch").read_text())

    def run(*arguments: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "FOLDER": str(tmp_path / "run"),
            "STATUS": str(status), "STATE": "RUNNING", "REASON": "None", "PYTHON": "container exec python",
            "TMPDIR": str(tmp_path / "local"), "SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "alpha,beta", "SLURM_CPUS_ON_NODE": "16",
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(spooled), *arguments], env=environment | variables, capture_output=True, text=True, timeout=60
        )

    return run


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("status", "state", "reason", "requeued"),
    [
        (0, "RUNNING", "None", False),  # finished
        (2, "RUNNING", "None", False),  # bad input stays bad
        (75, "RUNNING", "None", True),  # stopped at a step with a checkpoint, or a read failed for a moment
        (75, "COMPLETING", "None", False),  # by scancel, or requeued by another: theirs to decide
        (75, "COMPLETING", "TimeLimit", True),
        (1, "RUNNING", "None", True),  # a crash
        (137, "RUNNING", "None", True),  # killed
    ],
)
def test_what_goes_back_to_the_queue(submit, tmp_path, status, state, reason, requeued):
    done = submit("seed=1", status=status, STATE=state, REASON=reason)
    assert done.returncode == status, done.stderr
    assert lines(tmp_path / "calls/requeued") == (["42"] if requeued else [])
    events = [line.split(",")[5] for line in lines(tmp_path / "run/slurm.csv")]
    assert events == ["event", "started", f"status {status}"]


def test_attempts_that_do_not_come_forward_end_and_checkpoints_start_the_count_again(submit, tmp_path):
    checkpoint = "mkdir -p $FOLDER/checkpoints && touch $FOLDER/checkpoints/step{:08d}.ckpt"
    for attempt in range(5):  # each as far as the one before, and a checkpoint more
        submit(status=1, SLURM_RESTART_COUNT=str(attempt), DURING=checkpoint.format(attempt))
    assert len(lines(tmp_path / "calls/requeued")) == 5
    for attempt in range(5, 7):
        submit(status=1, SLURM_RESTART_COUNT=str(attempt))
    assert len(lines(tmp_path / "calls/requeued")) == 7
    last = submit(status=1, SLURM_RESTART_COUNT="7")
    assert "3 attempts in a row" in last.stdout
    assert len(lines(tmp_path / "calls/requeued")) == 7
    submit(status=1, SLURM_JOB_ID="43")  # submitted again by a person: the count is the job's
    assert lines(tmp_path / "calls/requeued")[-1] == "43"


@pytest.mark.parametrize(
    ("variables", "tasks", "threads"),
    [
        ({}, 1, 16),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8, 2),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "4"}, 4, 4),
        ({"SLURM_NTASKS_PER_NODE": "32"}, 32, 1),
    ],
)
def test_ranks_follow_the_allocation(submit, tmp_path, variables, tasks, threads):
    submit("experiment=iid_renorm", "optim.lr=1", SRUN_OPTIONS="--container-image=a.sqsh", **variables)
    compose, training = lines(tmp_path / "calls/srun")
    for option in (
        "--nodes=2", f"--ntasks={2 * tasks}", f"--ntasks-per-node={tasks}", f"--cpus-per-task={threads}",
        "--container-image=a.sqsh",
    ):  # fmt: skip
        assert option in training.split()
    words = "container exec python train.py experiment=iid_renorm optim.lr=1"
    assert training.endswith(words)
    assert words in compose
    assert lines(tmp_path / "calls/environment") == [f"10.0.0.7 {threads}"]


def test_the_second_attempt_does_not_move_the_first_aside(submit, tmp_path):
    submit("seed=1", SLURM_JOB_ID="41")
    submit("fresh=true", status=1)  # ended before it had moved the run of job 41
    submit("fresh=true", status=75, SLURM_RESTART_COUNT="1", DURING='mv "$FOLDER" "$FOLDER.old"')
    submit("fresh=true", SLURM_RESTART_COUNT="2")
    ranks = [line for line in lines(tmp_path / "calls/srun") if "--cfg" not in line]
    assert [line.split("train.py ")[1] for line in ranks] == [
        "seed=1", "fresh=true", "fresh=true", "fresh=true fresh=false",
    ]  # fmt: skip
    rows = {name: lines(tmp_path / name / "slurm.csv") for name in ("run.old", "run")}
    assert {name: [row.split(",")[5] for row in of] for name, of in rows.items()} == {
        "run.old": ["event", "started", "status 0", "started", "status 1", "started"],
        "run": ["event", "status 75", "started", "status 0"],
    }


def test_an_array_element_takes_its_experiment_and_seed_and_a_config_that_does_not_compose_no_ranks(submit, tmp_path):
    submit("@iid_renorm,micro4_renorm", "data.root=/a b", SLURM_ARRAY_TASK_ID="5")
    assert lines(tmp_path / "calls/srun")[-1].endswith("train.py experiment=micro4_renorm seed=2 data.root=/a b")
    assert submit("sede=1", COMPOSED="2").returncode == 2
    assert len(lines(tmp_path / "calls/srun")) == 3


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({"SLURM_JOB_ID": ""}, "this is for SLURM"),
        ({"SLURM_SUBMIT_DIR": "/"}, "no train.py in /: sbatch from the repository"),
        ({"RETRIES": "nan"}, "RETRIES=nan"),
        ({"WAIT": "0"}, "WAIT=0"),
    ],
)
def test_bad_input_is_one_line_and_stays_out_of_the_queue(submit, tmp_path, variables, answer):
    done = submit(**variables)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert answer in done.stderr
    assert not (tmp_path / "calls/requeued").exists()
