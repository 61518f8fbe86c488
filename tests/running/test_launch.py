"""However its processes were started, a run is one run: one folder, one table, the same numbers."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from batch_renorm.running import launch
from batch_renorm.running.launch import ALONE, World, find_world, torchrun_names
from tests.conftest import ROOT, TINY
from tests.running.checkpoint_files import assert_close, curve, final_state
from tests.running.forked import fit_in_forks, free_port, in_forks, train_in_forks
from tests.running.test_resume import assert_bit_equal

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3",
}  # fmt: skip
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ALONE),
        (BATCH_SCRIPT, ALONE),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, ALONE),
        (TORCHRUN, World(5, 1, 4, 2, 1, "torchrun")),
        (SRUN, World(3, 1, 2, 2, 1, "srun")),
    ],
)
def test_a_process_knows_its_place(env, expected):
    assert find_world("cpu", "auto", "auto", env) == expected
    assert find_world("cpu", expected.devices, expected.nodes, env) == expected


def test_a_task_of_sruns_meets_the_others_where_all_would_look():
    names = torchrun_names(find_world("cpu", "auto", "auto", SRUN), SRUN)
    assert (names["RANK"], names["LOCAL_RANK"], names["WORLD_SIZE"], names["MASTER_ADDR"]) == ("3", "1", "4", "n1")
    first = SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert torchrun_names(find_world("cpu", "auto", "auto", first), first)["MASTER_PORT"] == names["MASTER_PORT"]
    other_step = SRUN | {"SLURM_STEP_ID": "4"}
    assert torchrun_names(find_world("cpu", "auto", "auto", SRUN), other_step)["MASTER_PORT"] != names["MASTER_PORT"]
    chosen = SRUN | {"MASTER_ADDR": "10.0.0.7"}
    assert torchrun_names(find_world("cpu", "auto", "auto", SRUN), chosen)["MASTER_ADDR"] == "10.0.0.7"


@pytest.mark.parametrize(
    ("devices", "nodes", "env", "words"),
    [
        (2, "auto", TORCHRUN, "torchrun started 4 processes a node, but trainer.devices=2"),
        ("auto", 3, SRUN, "srun started 2 nodes, but trainer.num_nodes=3"),
        ("auto", 2, {}, "trainer.num_nodes=2 needs a launcher"),
        (0, "auto", {}, "trainer.devices must be at least 1"),
        ("auto", "auto", SRUN | {"SLURM_STEP_NUM_TASKS": "3"}, "every node needs as many"),
        ("auto", "auto", SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, "--distribution=block"),
    ],
)
def test_disagreement_is_named(devices, nodes, env, words):
    with pytest.raises(ValueError, match=words):
        find_world("cpu", devices, nodes, env)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"2 ranks on this machine, but each sees 1 GPU: .*--gpus-per-node"):
        find_world("gpu", 2, 1, {})


def as_tasks_of_srun(*arguments):
    """Two ranks with the variables that srun would give them; their exit statuses and words."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = []
    for rank in "01":
        env = os.environ | meeting | SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
        env |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0", "SLURM_NTASKS": "2"}
        command = [sys.executable, "train.py", *arguments]
        tasks.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
    said = [task.communicate()[1] for task in tasks]
    return [task.returncode for task in tasks], said


@pytest.mark.slow
def test_torchrun_srun_and_a_sweep_of_plain_python_give_the_same_bits(tmp_path):
    """srun is played by two processes with its variables; the cluster's own tests have a real one."""
    overrides = [*TINY, "size.workers=3", "trainer=cpu", "fresh=true"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", *overrides]
    sweep = ["train.py", "-m", *overrides, "trainer.devices=2", "seed=0,1", f"folder={tmp_path}/python/${{seed}}"]
    said = {}
    for name, arguments in (("torchrun", [*torchrun, f"folder={tmp_path}/torchrun"]), ("python", sweep)):
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[name] = done.stderr + done.stdout
    assert said["torchrun"].count("(started by torchrun)") == said["torchrun"].count("validation top-1") == 1
    assert said["python"].count("(started by python)") == said["python"].count("validation top-1") == 2
    folder = f"folder={tmp_path}/srun"
    status, words = as_tasks_of_srun(*overrides, folder)
    assert status == [0, 0], words
    assert "(started by srun)" in words[0]
    assert words[1] == ""

    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "srun", "torchrun"]
    assert sorted(path.name for path in (tmp_path / "python").iterdir()) == ["0", "1"]
    for other in ("srun", "python/0"):
        assert_bit_equal(final_state(tmp_path / other), final_state(tmp_path / "torchrun"))
        assert curve(tmp_path / other) == curve(tmp_path / "torchrun")


def test_fifty_workers_over_eight_ranks_are_one_step(compose, tmp_path):
    """Shares of 7, 7, 6, 6, 6, 6, 6, 6 in two passes, against all at once."""
    overrides = [
        *TINY, "size.workers=50", "size.minibatch=4", "model.head=16", "model.head_layers=1",
        "trainer.workers_per_pass=4",
    ]  # fmt: skip
    config = {key: value for key, value in compose(*overrides).items() if key != "fresh"}
    for ranks in (1, 8):
        fit_in_forks(config, tmp_path / str(ranks), ranks)
    assert_close(final_state(tmp_path / "8"), final_state(tmp_path / "1"), 3e-6)


def test_what_rank_0_refuses_no_rank_begins(compose, tmp_path):
    folder = f"folder={tmp_path}/run"
    assert train_in_forks(compose(*TINY, folder), 2)[0] == [0, 0]
    statuses, out, _ = train_in_forks(compose(*TINY, folder), 2)
    assert statuses == [0, 0]
    assert out.count("This run is finished") == 1
    statuses, _, err = train_in_forks(compose(*TINY, folder, "optim.clip_norm=1"), 2)
    assert statuses == [2, 2]
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "it differs in optim.clip_norm." in line


@pytest.mark.slow
def test_a_rank_that_waits_for_others_hears_that_it_is_to_stop(tmp_path):
    """It trains nothing yet: no step has an end at which it could stop."""
    port = free_port()
    env = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "train.py", *TINY, f"folder={tmp_path}/run"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    while True:  # until it listens for the others
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "SIGTERM: ends, waiting for the other ranks; nothing was trained yet" in err


def come_and_go(world):
    with launch.all_ranks(world, {}, gpu=False):
        pass
    assert dist.is_initialized()  # a sweep's next run has the same ranks
    with contextlib.suppress(KeyError), launch.all_ranks(world, {}, gpu=False):
        raise KeyError
    launch.disconnect()
    assert dist.is_initialized()
    with launch.all_ranks(world, {}, gpu=False):
        assert launch.gather(world.rank, world) == [0, 1]
    launch.disconnect()
    assert not dist.is_initialized()


def test_ranks_leave_the_group_together_and_only_after_a_run_that_went_well():
    assert in_forks(come_and_go, 2)[0] == [0, 0]


def test_a_failed_rank_ends_the_run_where_no_collective_notices(monkeypatch):
    """As with NCCL, which waits for a rank that is gone."""
    monkeypatch.setattr(launch, "GRACE", 0.1)

    def rank_0():
        children = [
            launch.SPAWN.Process(target=time.sleep, args=(60,)),
            launch.SPAWN.Process(target=os._exit, args=(1,)),
        ]
        for child in children:
            child.start()
        threading.Thread(target=launch.watch, args=(children, threading.Event()), daemon=True).start()
        children[0].join()
        time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=rank_0)
    process.start()
    process.join()
    assert process.exitcode == 1
