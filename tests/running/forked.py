"""Ranks as forks of the test's own process, which spares each of them its imports."""

import multiprocessing
import os
import socket

from batch_renorm.running.build import build
from batch_renorm.running.cli import explained
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import Folder, prepare
from batch_renorm.running.launch import World, connect, names_of
from batch_renorm.running.run import train


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_forks(do, ranks):
    """do(world) in a process per rank, with torchrun's variables; their exit statuses."""
    port = free_port()

    def one(rank):
        world = World(rank, rank, ranks, 1, 0, "torchrun")
        os.environ |= names_of(world, rank, rank) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with explained():
            do(world)

    processes = [multiprocessing.get_context("fork").Process(target=one, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def fit_in_forks(config, path, ranks):
    """A whole run on so many ranks."""
    folder = Folder(path)
    prepare(folder, config)

    def do(world):
        connect(world, gpu=False)
        fit(build(config), folder, None, world)

    assert in_forks(do, ranks) == [0] * ranks


def train_in_forks(config, ranks):
    """What train.py does with a config, on so many ranks that something else has started; their statuses."""
    return in_forks(lambda world: train(config), ranks)
