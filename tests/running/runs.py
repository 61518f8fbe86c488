"""Runs in this process, ranks as forks of one that has made its imports, and what they leave behind, to compare it."""

import socket
import time
from pathlib import Path

import torch

from batch_renorm.records.curve import BY_THE_CLOCK, read_rows
from batch_renorm.records.folder import Folder
from batch_renorm.running.build import build
from batch_renorm.running.checkpoints import checkpoints
from batch_renorm.running.cli import explained
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import prepare_folder
from batch_renorm.running.launch import torchrun_names
from batch_renorm.running.ranks import ALONE, World
from batch_renorm.running.run import train
from tests.conftest import Forked


def trained(config, path, checkpoint=None):
    """Train a config in this process; its run folder."""
    folder = Folder(path)
    prepare_folder(folder, config)
    fit(build(config), folder, checkpoint, ALONE)
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def as_rank(do, *arguments):
    with explained():
        do(*arguments)


def in_forks(do, ranks, *arguments, started=None):
    """do(world, *arguments) in a process per rank, with torchrun's variables: exit statuses, standard output, error.

    `started` gets the ids of the processes.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    worlds = [World(rank, rank, ranks, 1, 0, "torchrun") for rank in range(ranks)]
    forks = [Forked(as_rank, do, world, *arguments, **meeting, **torchrun_names(world)) for world in worlds]
    if started is not None:
        started += [fork.process.pid for fork in forks]
    statuses = [fork.ended() for fork in forks]
    return statuses, *("".join(fork.text(name) for fork in forks) for name in ("out", "err"))


def train_in_forks(config, path, ranks, statuses=(0,)):
    """What train.py does with a config, on so many ranks that something else has started: standard output, error."""
    found, out, err = in_forks(_train, ranks, config | {"folder": str(path)})
    assert set(found) == set(statuses), err
    return out, err


def _train(world, config):
    train(config)


def wait_for_rows(folder, rows, process):
    """Wait until a run that `process` trains has so many rows in its curve."""
    while len(read_rows(folder / "curve.csv")) < rows:
        assert process.process.is_alive(), process.text("err")
        time.sleep(0.02)


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, mu, sigma, and the average of them, of a run's newest checkpoint."""
    return torch.load(checkpoints(folder)[0], weights_only=True)["state_dict"]


def mu_and_sigma(state: dict[str, torch.Tensor], eps: float) -> dict[str, torch.Tensor]:
    """The same in the paper's terms."""
    found = {name: value for name, value in state.items() if ".running_" not in name}
    for name, value in state.items():
        if name.endswith(".running_mean"):
            found[name.replace("running_mean", "mu")] = value
        elif name.endswith(".running_var"):
            found[name.replace("running_var", "sigma")] = (value + eps).sqrt()
    return found


def curve(folder: Path) -> list[tuple[str, ...]]:
    """The header and rows of a curve that time has no part in."""
    rows = [tuple(line.split(",")) for line in (folder / "curve.csv").read_text().splitlines()]
    return [row for row in rows if not row[1].startswith(BY_THE_CLOCK)]


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def assert_same_run(left: Path, right: Path) -> None:
    """The curve, and in the last checkpoint weights, mu, sigma, their average, the optimiser's state: bit for bit."""
    assert curve(left) == curve(right)
    held = [torch.load(checkpoints(folder)[0], weights_only=True) for folder in (left, right)]
    one, other = [[last["state_dict"], *(each["state"] for each in last["optimizer_states"])] for last in held]
    torch.testing.assert_close(one, other, rtol=0, atol=0)
