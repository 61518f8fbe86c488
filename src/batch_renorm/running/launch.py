"""The ranks of a run, whether torchrun, srun or plain `python train.py` starts them.

Each launcher describes the ranks in environment variables. This module reads them into one `World` and sets
torchrun's variables, the only ones that torch and Lightning then read. Plain `python train.py` is rank 0 and
starts the other ranks of its machine with the composed config, so a sweep can have several ranks too.
"""

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.utilities import rank_zero as fabric_rank_zero
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero

from batch_renorm.errors import UserError
from batch_renorm.running.rank import rank_main
from batch_renorm.running.signals import HEARD, hear_while_waiting

T = TypeVar("T")
SPAWN = multiprocessing.get_context("spawn")
GRACE = 10.0  # seconds that rank 0 gets to fail by itself after another rank has failed


@dataclass(frozen=True)
class World:
    """This process's place in the run: `devices` ranks on each of `nodes` machines."""

    rank: int
    local_rank: int
    devices: int
    nodes: int
    node: int
    launcher: Literal["python", "torchrun", "srun"]

    @property
    def ranks(self) -> int:
        return self.devices * self.nodes


ALONE = World(rank=0, local_rank=0, devices=1, nodes=1, node=0, launcher="python")


def find_world(accelerator: str, devices: int | str, nodes: int | str, env: Mapping[str, str] = os.environ) -> World:
    """Find this process's place in the run; `devices` and `nodes` come from configs/trainer.

    Raises:
        UserError: the launcher and the config disagree; the message names both.
    """
    result = started(env) or World(0, 0, wanted_devices(accelerator, devices), as_number(nodes), 0, "python")
    if result.launcher == "python" and result.nodes > 1:
        raise UserError(
            f"trainer.num_nodes={nodes} needs a launcher that starts the other machines: srun or torchrun "
            "(it then counts the nodes itself)"
        )
    for name, wanted, got in (("devices", devices, result.devices), ("num_nodes", nodes, result.nodes)):
        if isinstance(wanted, int) and wanted != got:
            what = "processes a node" if name == "devices" else "nodes"
            raise UserError(
                f"{result.launcher} started {got} {what}, but trainer.{name}={wanted}: leave trainer.{name}=auto"
            )
    visible = torch.cuda.device_count()
    if uses_gpu(accelerator) and visible < result.devices:
        raise UserError(
            f"{result.devices} rank{'s' * (result.devices > 1)} on this machine, but each sees {visible} "
            f"GPU{'s' * (visible != 1)}: start fewer, use trainer=cpu, or let every task see all of them "
            "(SLURM: --gpus-per-node, not --gpus-per-task)"
        )
    return result


def tell_lightning_the_rank(world: World) -> None:
    """Set the rank for Lightning's `rank_zero_only` before the trainer exists."""
    for module in (rank_zero, fabric_rank_zero):
        module.rank_zero_only.rank = world.rank


def started(env: Mapping[str, str]) -> World | None:
    """The place that torchrun or srun gave this process; None if neither started several processes."""
    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= env.keys():
        ranks, devices = int(env["WORLD_SIZE"]), int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]))
        rank = int(env["RANK"])
        return World(rank, int(env["LOCAL_RANK"]), devices, ranks // devices, rank // devices, "torchrun")
    # srun's own count; sbatch sets other variables, which do not describe this process
    ranks, nodes = int(env.get("SLURM_STEP_NUM_TASKS", 1)), int(env.get("SLURM_STEP_NUM_NODES", 1))
    if ranks == 1:
        return None
    if ranks % nodes:
        raise UserError(f"srun started {ranks} tasks on {nodes} nodes: every node needs as many (--ntasks-per-node)")
    rank, local, node = (int(env[f"SLURM_{name}"]) for name in ("PROCID", "LOCALID", "NODEID"))
    if rank != node * (ranks // nodes) + local:
        raise UserError("srun dealt the tasks out to the nodes in turn: use --distribution=block")
    return World(rank, local, ranks // nodes, nodes, node, "srun")


def uses_gpu(accelerator: str) -> bool:
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def device_of(world: World, accelerator: str) -> torch.device:
    """This rank's device."""
    return torch.device("cuda", world.local_rank) if uses_gpu(accelerator) else torch.device("cpu")


def wanted_devices(accelerator: str, devices: int | str) -> int:
    """The number of devices for plain python: `all` means every GPU of this machine, `auto` means one."""
    if isinstance(devices, int):
        if devices < 1:
            raise UserError(f"trainer.devices must be at least 1, 'auto' or 'all', got {devices}")
        return devices
    return max(1, torch.cuda.device_count()) if devices == "all" and uses_gpu(accelerator) else 1


def as_number(nodes: int | str) -> int:
    return nodes if isinstance(nodes, int) else 1


@contextmanager
def all_ranks(world: World, settings: dict[str, Any], gpu: bool) -> Iterator[None]:
    """Start the other ranks if no launcher has, and connect all ranks; if one rank fails, all end."""
    if world.ranks == 1:
        yield
        return
    if world.launcher != "python":
        if world.launcher == "srun":
            os.environ.update(torchrun_names(world, os.environ))
        connect(world, gpu)
        yield  # stay connected: the next run of a sweep has the same ranks
        went_well.set()
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    before = os.environ.copy()
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, **names_of(world, 0, 0))
    children = [other_rank(world, rank, settings) for rank in range(1, world.ranks)]
    done = threading.Event()
    threading.Thread(target=watch, args=(children, done), daemon=True).start()
    try:
        connect(world, gpu)
        yield
        done.set()
        went_well.set()
        disconnect()  # as the other ranks do now
        for process in children:
            process.join()
    finally:
        done.set()
        for process in children:
            process.kill()
            process.join()
        os.environ.clear()
        os.environ.update(before)


def connect(world: World, gpu: bool) -> None:
    device = torch.device("cuda", world.local_rank) if gpu else None
    if device is not None:
        torch.cuda.set_device(device)
    went_well.clear()
    if not dist.is_initialized():  # Lightning uses an existing group
        with hear_while_waiting():
            dist.init_process_group(
                "nccl" if gpu else "gloo", rank=world.rank, world_size=world.ranks, device_id=device
            )  # fmt: skip
        atexit.unregister(disconnect)
        atexit.register(disconnect)


def disconnect() -> None:
    """Leave the group together with all other ranks; not after an error, when they may be gone or waiting."""
    if dist.is_initialized() and went_well.is_set():
        with hear_while_waiting():
            dist.barrier()
        dist.destroy_process_group()


went_well = threading.Event()
"""Set if the last run of this process completed, which it then did on every rank."""


def from_rank_0(value: T, world: World) -> T:
    """Rank 0's value on every rank; on a single rank the value itself."""
    if world.ranks == 1:
        return value
    box: list[Any] = [value]
    with hear_while_waiting():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T, world: World) -> list[T]:
    """The values of all ranks, in rank order."""
    box: list[Any] = [value]
    if world.ranks > 1:
        box *= world.ranks
        with hear_while_waiting():
            dist.all_gather_object(box, value)
    return box


def names_of(world: World, rank: int, local_rank: int) -> dict[str, str]:
    """torchrun's environment variables for a rank."""
    numbers = {
        "RANK": rank, "LOCAL_RANK": local_rank, "NODE_RANK": world.node,
        "WORLD_SIZE": world.ranks, "LOCAL_WORLD_SIZE": world.devices,
    }  # fmt: skip
    return {name: str(number) for name, number in numbers.items()}


def torchrun_names(world: World, env: Mapping[str, str]) -> dict[str, str]:
    """torchrun's environment variables for a task of srun; MASTER_ADDR and MASTER_PORT are kept if set."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "127.0.0.1")
    # steps of one job, and jobs on the same machine, must not use the same port
    port = 15000 + (int(env.get("SLURM_JOB_ID", 0)) * 7 + int(env.get("SLURM_STEP_ID", 0))) % 15000
    main = {
        "MASTER_ADDR": env.get("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes)),
        "MASTER_PORT": env.get("MASTER_PORT", str(port)),
    }
    return main | names_of(world, world.rank, world.local_rank)


def other_rank(world: World, rank: int, settings: dict[str, Any]) -> SpawnProcess:
    """Start another rank of this machine; it ends when this process does.

    Signals are blocked until `rank_main` ignores them: one that arrives during the rank's imports would kill it.
    """
    process = SPAWN.Process(target=rank_main, args=(names_of(world, rank, rank), settings))
    resource_tracker.ensure_running()  # now, because its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def watch(children: Sequence[SpawnProcess], done: threading.Event) -> None:
    """End this process if another rank has failed and the collectives do not notice it."""
    while not done.wait(0.5):
        for rank, process in enumerate(children, 1):
            if process.exitcode:
                if done.wait(GRACE):
                    return
                print(f"rank {rank} ended with status {process.exitcode}: stopping the run", file=sys.stderr)
                for other in children:
                    other.kill()
                time.sleep(0.1)
                os._exit(1)
