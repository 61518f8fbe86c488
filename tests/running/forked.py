"""Runs in this process, and ranks as forks of one that has made its imports."""

import socket
import time

from batch_renorm.records.curve import read_rows
from batch_renorm.records.folder import Folder
from batch_renorm.running.build import build
from batch_renorm.running.cli import explained
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import prepare_folder
from batch_renorm.running.launch import connected, torchrun_names
from batch_renorm.running.ranks import ALONE, World
from batch_renorm.running.run import train
from tests.conftest import Forked


def trained(config, path, checkpoint=None, world=ALONE):
    """Train a config in this process; its run folder."""
    folder = Folder(path)
    prepare_folder(folder, config)
    fit(build(config), folder, checkpoint, world)
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


def fit_in_forks(config, path, ranks, checkpoint=None):
    """A run on so many ranks."""
    prepare_folder(Folder(path), config)
    statuses, _, err = in_forks(_fit, ranks, config, path, checkpoint)
    assert statuses == [0] * ranks, err


def _fit(world, config, path, checkpoint):
    with connected(world, gpu=False):
        fit(build(config), Folder(path), checkpoint, world)


def train_in_forks(config, ranks):
    """What train.py does with a config, on so many ranks that something else has started, as `in_forks` returns it."""
    return in_forks(_train, ranks, config)


def _train(world, config):
    train(config)


def wait_for_rows(folder, rows, process):
    """Wait until a run that `process` trains has so many rows in its curve."""
    while len(read_rows(folder / "curve.csv")) < rows:
        assert process.process.is_alive(), process.text("err")
        time.sleep(0.02)
