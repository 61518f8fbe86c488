"""Ranks as forks of a process that has made its imports, which spares each of them the seconds."""

import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path

from batch_renorm.running.build import build
from batch_renorm.running.cli import explained
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import Folder, prepare_folder
from batch_renorm.running.launch import connected, torchrun_names
from batch_renorm.running.ranks import World
from batch_renorm.running.run import train
from tests.conftest import FORKS


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def rank_main(do, arguments, world, environment, out, err):
    os.environ |= environment
    multiprocessing.set_start_method(None, force=True)  # for loader processes
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    with explained():
        do(world, *arguments)


def in_forks(do, ranks, *arguments, started=None):
    """do(world, *arguments) in a process per rank, with torchrun's variables: exit statuses, standard output, error.

    A process that has not ended after five minutes is killed, and its status is negative. `started` gets their ids.

    The processes are forks of a server that has made its imports and nothing else: a process that has used autograd on
    fake CUDA tensors cannot be forked. So `do` is a function of a module.
    """
    port, worlds = free_port(), [World(rank, rank, ranks, 1, 0, "torchrun") for rank in range(ranks)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        processes = []
        for world in worlds:
            environment = dict(os.environ) | torchrun_names(world)
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            processes.append(FORKS.Process(target=rank_main, args=(do, arguments, world, environment, out, err)))
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
            process.kill()
            process.join()
            if started is not None:
                started.append(process.pid)
        print(told := out.read_text())
        print(complained := err.read_text(), file=sys.stderr)
        return [process.exitcode for process in processes], told, complained


def fit_in_forks(config, path, ranks):
    """A whole run on so many ranks."""
    prepare_folder(Folder(path), config)
    assert in_forks(_fit, ranks, config, path)[0] == [0] * ranks


def _fit(world, config, path):
    with connected(world, gpu=False):
        fit(build(config), Folder(path), None, world)


def train_in_forks(config, ranks):
    """What train.py does with a config, on so many ranks that something else has started, as `in_forks` returns it."""
    return in_forks(_train, ranks, config)


def _train(world, config):
    train(config)
