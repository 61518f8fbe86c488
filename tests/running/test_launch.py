"""However its processes were started, a run is one run: one folder, one table, the same numbers."""

import functools
import signal
import sys
import time

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from batch_renorm import screen
from batch_renorm.errors import UserError
from batch_renorm.running import launch, ranks
from batch_renorm.running.launch import find_world, meeting_point_of_srun
from batch_renorm.running.ranks import ALONE, World
from tests.conftest import TINY, Forked, script
from tests.running.runs import as_rank, assert_close, assert_same_run, final_state, free_port, in_forks, train_in_forks

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "n1"}
SRUN = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3",
}  # fmt: skip
ONE_TASK = SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "4"}
HOOK = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "n1"}  # of enroot, in a task of srun


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ALONE),
        (BATCH_SCRIPT, ALONE),
        (ONE_TASK, ALONE),
        (ONE_TASK | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        (TORCHRUN, World(5, 1, 4, 2, 1, "torchrun")),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2"} | TORCHRUN, World(5, 1, 4, 2, 1, "torchrun")),  # torchrun in srun
        (SRUN, World(3, 1, 2, 2, 1, "srun")),
        (SRUN | HOOK, World(3, 1, 2, 2, 1, "srun")),
        (SRUN | {"PMI_SIZE": "4", "PMI_RANK": "3"}, World(3, 1, 2, 2, 1, "srun")),  # srun --mpi=pmi2
    ],
)
def test_a_process_knows_its_place(env, expected):
    assert find_world("cpu", "auto", "auto", env) == expected
    assert find_world("cpu", expected.devices, expected.nodes, env) == expected


def test_a_task_of_sruns_meets_the_others_where_all_would_look():
    place = meeting_point_of_srun(SRUN)
    assert place["MASTER_ADDR"] == "n1"
    assert meeting_point_of_srun(SRUN | {"SLURM_PROCID": "0"}) == place
    assert meeting_point_of_srun(SRUN | {"SLURM_STEP_ID": "4"})["MASTER_PORT"] != place["MASTER_PORT"]
    assert meeting_point_of_srun(SRUN | {"MASTER_ADDR": "10.0.0.7"})["MASTER_ADDR"] == "10.0.0.7"


@pytest.mark.parametrize(
    ("devices", "nodes", "env", "words"),
    [
        ("auto", 3, SRUN, "srun started 2 nodes, but trainer.num_nodes=3"),
        ("auto", 2, {}, "trainer.num_nodes=2: start with srun or torchrun"),
        (2, "auto", TORCHRUN, "torchrun started 4 processes a node, but trainer.devices=2"),
        ("auto", "auto", SRUN | {"SLURM_STEP_NUM_TASKS": "3"}, "SLURM_STEP_NUM_TASKS=3, .*every machine needs as many"),
        ("auto", "auto", SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, "--distribution=block"),
        ("auto", "auto", TORCHRUN | {"RANK": "8"}, "RANK=8, .*unset what an earlier program left"),
        ("auto", "auto", TORCHRUN | {"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE=, |LOCAL_WORLD_SIZE=:"),
        ("auto", "auto", HOOK, "WORLD_SIZE=4 tells of other ranks, but LOCAL_WORLD_SIZE are not set: start with"),
        ("auto", "auto", {"WORLD_SIZE": "8", "RANK": "0"}, "or unset WORLD_SIZE to train alone"),
        ("auto", "auto", {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=4 tells of"),
    ],
)
def test_disagreement_is_named(devices, nodes, env, words):
    with pytest.raises(ValueError, match=words) as error:
        find_world("cpu", devices, nodes, env)
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"2 rank.s. on this machine, but each sees 1 GPU.*--gpus-per-node"):
        find_world("gpu", 2, 1, {})


def train_with_forked_ranks(*arguments):
    torch.multiprocessing.spawn = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    script("train.py", *arguments)


def torchrun(*arguments):
    place = f"127.0.0.1:{free_port()}"
    config = LaunchConfig(1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint=place, start_method="fork")
    elastic_launch(config, script)("train.py", *arguments)


@pytest.mark.slow
def test_torchrun_srun_and_a_sweep_of_plain_python_give_the_same_bits(tmp_path):
    """srun is played by two processes with its variables; the cluster's own tests have a real one."""
    options = [*TINY, "data.labels=24", "size.workers=3"]
    sweep = ["-m", *options, "trainer.devices=2", "seed=0,1", f"folder={tmp_path}/python/${{seed}}"]
    srun = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}
    srun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    task = functools.partial(Forked, script, "train.py", *options, f"folder={tmp_path}/srun", **srun)
    started = {
        "python": [Forked(train_with_forked_ranks, *sweep)],
        "srun": [task(SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"],
        "torchrun": [Forked(torchrun, *options, f"folder={tmp_path}/torchrun")],
    }
    for name, processes in started.items():
        statuses = [process.ended() for process in processes]
        text = "".join(process.text(stream) for process in processes for stream in ("err", "out"))
        assert statuses == [0] * len(processes), text
        runs = 2 if name == "python" else 1
        assert text.count(f"(started by {name})") == text.count("validation top-1") == runs, text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(started)
    for other in ("srun", "python/0"):
        assert_same_run(tmp_path / other, tmp_path / "torchrun")


def test_fifty_workers_over_eight_ranks_are_one_step(compose, tmp_path):
    """Shares of 7, 7, 6, 6, 6, 6, 6, 6 in two passes, against all at once."""
    config = compose(
        *TINY, "size.workers=50", "size.minibatch=2", "model.head=16", "model.head_layers=1", "data.labels=4",
        "evaluation.labels_per_minibatch=1", "trainer.workers_per_pass=4", "size.steps=1",
    )  # fmt: skip
    for number in (1, 8):
        train_in_forks(config, tmp_path / str(number), number)
    assert_close(final_state(tmp_path / "8"), final_state(tmp_path / "1"), 3e-6)


@pytest.mark.slow
def test_what_rank_0_refuses_no_rank_begins(compose, tmp_path):
    """What is finished is reported, another config is refused, and fresh moves the earlier run aside."""
    folder = tmp_path / "run"
    first, _ = train_in_forks(compose(*TINY), folder, 2)
    assert first.startswith("validation top-1 ")
    assert first.count("validation top-1 ") == 1
    again, _ = train_in_forks(compose(*TINY), folder, 2)
    assert again == "This run is finished; fresh=true repeats it.\n" + first
    _, err = train_in_forks(compose(*TINY, "optim.clip_norm=1"), folder, 2, statuses=(2,))
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "it differs in optim.clip_norm." in line
    before = (folder / "curve.csv").read_bytes()
    train_in_forks(compose(*TINY, "fresh=true"), folder, 2)
    assert (tmp_path / "run.old/curve.csv").read_bytes() == before
    assert_same_run(folder, tmp_path / "run.old")


def wait_for_another():
    screen.SILENCE = 0.2
    with ranks.Stop().listening(), launch.connected(World(0, 0, 2, 1, 0, "srun"), gpu=False):
        raise AssertionError("there is no other rank")


def test_a_rank_that_waits_for_others_says_so_and_hears_that_it_is_to_stop():
    """As in a shell of `srun --ntasks=2 --pty`, where the other task has ended."""
    process = Forked(as_rank, wait_for_another, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    while "waiting for" not in process.text("err"):
        assert process.process.is_alive(), process.text("err")
        time.sleep(0.02)
    process.signal(signal.SIGTERM)
    assert process.ended() == -signal.SIGTERM
    assert "waiting for 1 other ranks that srun started (alone, in a shell of srun:" in process.text("err")


def come_and_go(world):
    for _ in range(2):  # a sweep's next run has the same ranks
        with launch.connected(world, gpu=False):
            assert ranks.gather(world.rank, world) == [0, 1]
            assert ranks.from_rank_0(world.rank, world) == 0
            assert ranks.on_rank_0(lambda: "found", world) == "found"
            with pytest.raises(KeyError if world.rank else SystemExit):
                ranks.together(lambda: {0: 0}[world.rank], world)
    with launch.connected(world, gpu=False):
        if world.rank:
            raise UserError("rank 1 cannot go on")
        ranks.gather(0, world)


def test_ranks_agree_and_a_rank_that_loses_another_says_so():
    statuses, _, err = in_forks(come_and_go, 2)
    assert statuses == [1, 2]
    assert "error: rank 1 cannot go on" in err
    assert "rank 0 has lost another rank: " in " ".join(err.split())
    assert "Traceback" not in err


def end_or_hang(settings, world):
    if world.rank == settings["fails"]:
        sys.exit(settings["status"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600 if settings["status"] else 0)


@pytest.mark.parametrize("status", [0, 2, 75])
def test_a_failed_rank_ends_the_run_where_no_collective_notices(monkeypatch, status):
    """As with NCCL, which waits for a rank that is gone."""
    monkeypatch.setattr(launch, "GRACE", 0.2)
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "spawn", fork)
    world, settings = World(0, 0, 3, 1, 0, "python"), {"fails": 1, "status": status}
    if not status:
        return launch.start_ranks(world, end_or_hang, settings)
    with pytest.raises(SystemExit) as error:
        launch.start_ranks(world, end_or_hang, settings)
    assert error.value.code == status
