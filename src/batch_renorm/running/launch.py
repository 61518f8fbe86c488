"""Starting the ranks of a run: torchrun, srun or plain `python train.py`.

Each launcher describes the ranks in environment variables. They are read into one `World`, and then set as torchrun's,
the only ones that torch and Lightning read. Plain python starts a process per rank, in a sweep for each of its runs.
"""

import atexit
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from typing import Any, Literal

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import SLURMEnvironment

from batch_renorm.errors import UserError
from batch_renorm.running.ranks import SIGNALS, World, ending_on_signals
from batch_renorm.screen import print_remark, waiting

GRACE = 10.0  # seconds that the other ranks get to end by themselves after one has failed
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES")
OTHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")


def find_world(accelerator: str, devices: int | str, nodes: int | str, env: Mapping[str, str] = os.environ) -> World:
    """This process's place in the run, if the launcher agrees with `devices` and `num_nodes` of configs/trainer."""
    visible = torch.cuda.device_count()
    wanted = {"auto": 1, "all": max(1, visible) if uses_gpu(accelerator) else 1}.get(str(devices), devices)
    world = started(env) or World(0, 0, int(wanted), 1, 0, "python")
    for name, what, asked, got in (
        ("devices", "processes a node", devices, world.devices), ("num_nodes", "nodes", nodes, world.nodes)
    ):  # fmt: skip
        if isinstance(asked, int) and asked != got:
            cure = "start with srun or torchrun" if world.launcher == "python" else f"leave trainer.{name}=auto"
            raise UserError(f"{world.launcher} started {got} {what}, but trainer.{name}={asked}: {cure}")
    if uses_gpu(accelerator) and visible < world.devices:
        raise UserError(
            f"{world.devices} rank(s) on this machine, but each sees {visible} GPU(s): start fewer, use trainer=cpu, "
            "or let every task see all of them (SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    return world


def started(env: Mapping[str, str]) -> World | None:
    """The place that torchrun or srun gave this process; None if neither started several processes.

    Lightning's environments also read what is not about this process: sbatch's variables, a container hook's RANK.
    """
    launcher: Literal["torchrun", "srun"]
    missing = ", ".join(name for name in (*TORCHRUN, "MASTER_ADDR") if name not in env)
    if not missing:
        launcher, names = "torchrun", TORCHRUN
    elif env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        launcher, names = "srun", SRUN
    elif name := next((name for name in OTHERS if env.get(name, "1") != "1"), None):
        raise UserError(
            f"{name}={env[name]} tells of other ranks, but {missing} are not set: start with torchrun or srun, or "
            f"unset {name} to train alone"
        )
    else:
        return None
    try:
        rank, local_rank, ranks, last = (int(env[name]) for name in names)
        devices, nodes = (last, ranks // last) if launcher == "torchrun" else (ranks // last, last)
        consistent = rank in range(ranks) and ranks == devices * nodes and rank % devices == local_rank
    except (KeyError, ValueError, ZeroDivisionError):
        consistent = False
    if not consistent:
        raise UserError(
            f"{', '.join(f'{name}={env.get(name)}' for name in names)}: every machine needs as many ranks, numbered in "
            "blocks (SLURM: --ntasks-per-node, --distribution=block); unset what an earlier program left"
        )
    return World(rank, local_rank, devices, nodes, rank // devices, launcher)


def uses_gpu(accelerator: str) -> bool:
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def device_of(world: World, accelerator: str) -> torch.device:
    """This rank's device."""
    return torch.device("cuda", world.local_rank) if uses_gpu(accelerator) else torch.device("cpu")


def start_ranks(world: World, main: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Run `main` in a process per rank, and wait for them; every rank hears the signals that this process gets.

    Raises:
        SystemExit: a rank ended with a status that says why, such as 75; of several, the largest, as with srun.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    resource_tracker.ensure_running()  # now, because its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until a rank can handle them
    arguments = (world, meeting_point, main, settings)
    ranks = torch.multiprocessing.spawn(one_rank, arguments, nprocs=world.ranks, join=False)
    processes = ranks.processes

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    handlers = {number: signal.signal(number, pass_on) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        while not ranks.join(grace_period=GRACE):
            pass
    except (torch.multiprocessing.ProcessExitedException, torch.multiprocessing.ProcessRaisedException):
        status = max(130 if process.exitcode == -signal.SIGINT else process.exitcode for process in processes)
        if status != 1:
            raise SystemExit(status if status > 0 else 128 - status) from None  # as a shell tells of a signal
        raise
    finally:
        for process in processes:
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def one_rank(rank: int, world: World, meeting_point: dict[str, str], main: Callable, settings: dict[str, Any]) -> None:
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to the first process alone, which passes it on once
    multiprocessing.set_start_method(None, force=True)  # the system's for loader processes, not this process's
    world = replace(world, rank=rank, local_rank=rank)
    os.environ.update(torchrun_names(world) | meeting_point)
    main(settings, world)


@contextmanager
def connected(world: World, gpu: bool) -> Iterator[None]:
    """Connect this rank with the others; it stays connected for the next run of a launcher's sweep."""
    if world.ranks == 1:
        yield
        return
    if world.launcher == "srun":
        os.environ.update(torchrun_names(world) | meeting_point_of_srun(os.environ))
    atexit.unregister(dist.destroy_process_group)  # after an error the other ranks may be gone or waiting
    device = torch.device("cuda", world.local_rank) if gpu else None
    if device is not None:
        torch.cuda.set_device(device)
    if not dist.is_initialized():  # Lightning uses an existing group
        alone = " (alone, in a shell of srun: SLURM_STEP_NUM_TASKS=1)" if world.launcher == "srun" else ""
        with waiting(f"{world.ranks - 1} other ranks that {world.launcher} started{alone}"), ending_on_signals():
            dist.init_process_group("nccl" if gpu else "gloo", device_id=device)
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        print_remark(f"rank {world.rank} has lost another rank: {str(error).splitlines()[0]}")
        raise SystemExit(1) from error
    atexit.register(dist.destroy_process_group)


def torchrun_names(world: World) -> dict[str, str]:
    """torchrun's environment variables for a rank."""
    values = (world.rank, world.local_rank, world.ranks, world.devices, world.node)
    return dict(zip((*TORCHRUN, "NODE_RANK"), map(str, values), strict=True))


def meeting_point_of_srun(env: Mapping[str, str]) -> dict[str, str]:
    """Where the tasks of a step of srun meet; MASTER_ADDR and MASTER_PORT are kept if set."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "127.0.0.1")
    # steps of one job, and jobs on the same machine, must not use the same port
    port = 15000 + (int(env.get("SLURM_JOB_ID", 0)) * 7 + int(env.get("SLURM_STEP_ID", 0))) % 15000
    return {
        "MASTER_ADDR": env.get("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes)),
        "MASTER_PORT": env.get("MASTER_PORT", str(port)),
    }
