"""Ranks as forks of the test's own process, which spares each of them its imports."""

import multiprocessing
import os
import socket

from batch_renorm.training.build import build
from batch_renorm.training.cli import explained
from batch_renorm.training.fitting import fit
from batch_renorm.training.folder import Folder, prepare
from batch_renorm.training.launch import Place, connect, names_of
from batch_renorm.training.run import train


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_forks(do, ranks):
    """do(place) in a process per rank, with torchrun's variables; their exit statuses."""
    port = free_port()

    def one(rank):
        place = Place(rank, rank, ranks, 1, 0, "torchrun")
        os.environ |= names_of(place, rank, rank) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with explained():
            do(place)

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

    def do(place):
        connect(place, gpu=False)
        fit(build(config), folder, None, place)

    assert in_forks(do, ranks) == [0] * ranks


def train_in_forks(config, ranks):
    """What train.py does with a config, on so many ranks that something else has started; their statuses."""
    return in_forks(lambda place: train(config), ranks)
