"""loader_processes: auto, from what a rank has."""

import contextlib
import os
from types import SimpleNamespace

import pytest
import torch

from batch_renorm.data.loaders import SentAhead
from batch_renorm.running import fitting, loading
from batch_renorm.running.build import build
from batch_renorm.running.folder import Folder, prepare_folder
from batch_renorm.running.launch import ALONE, World, connect
from batch_renorm.training.module import Training
from tests.conftest import TINY
from tests.running.checkpoint_files import final_state
from tests.running.forked import in_forks
from tests.running.test_resume import assert_bit_equal

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def run(asked="auto", **source):
    return SimpleNamespace(machine=SimpleNamespace(loader_processes=asked), source=SimpleNamespace(**source))


@pytest.mark.parametrize(
    ("cores", "device", "processes"), [(12, CUDA, 11), (1, CUDA, 1), (200, CUDA, 16), (2, CPU, 1), (1.5, CPU, 0)]
)
def test_processes_follow_the_cores_of_a_rank(monkeypatch, cores, device, processes):
    monkeypatch.setattr(loading, "cores", lambda world: cores)
    monkeypatch.setattr(loading, "shared_memory_fits", lambda *_: None)
    found = loading.loading(run(image_bytes=100, needs_loader_processes=True), ALONE, device, 10)
    assert found == {"processes": processes, "because": f"{cores} cores of this rank"}
    assert loading.loading(run(needs_loader_processes=False), ALONE, device, 10)["processes"] == 0  # nothing to read
    assert loading.loading(run(7, image_bytes=100), ALONE, device, 10)["processes"] == 7


def test_no_more_processes_than_shared_memory_holds(monkeypatch):
    """8 ranks, 224 + 64 images of 299 pixels: a container's 64 MB hold none, 16 GB hold 10 and not 11."""
    from batch_renorm.running import shared_memory

    usage = shared_memory.shutil.disk_usage("/")
    monkeypatch.setattr(shared_memory.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(loading, "cores", lambda world: 12.0)
    world = World(0, 0, 8, 1, 0, "torchrun")
    for free, processes in ((64 << 20, 0), (16 << 30, 11), (14 << 30, 9), (1 << 40, 11)):
        monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        found = loading.loading(run(image_bytes=3 * 299 * 299, needs_loader_processes=True), world, CUDA, 288)
        assert found["processes"] == processes
        assert ("/dev/shm" in found["because"]) == (processes < 11)


def write_cores(world, folder):
    bound = [{0, 1, 2, 9}, {3, 9}]
    loading.affinity = lambda: bound[world.rank]
    loading.quota = lambda: None
    connect(world, gpu=False)
    alone = loading.cores(world)
    loading.affinity = lambda: {0, 1, 2, 3}
    together = loading.cores(world)
    loading.quota = lambda: 2.5
    (folder / str(world.rank)).write_text(f"{alone} {together} {loading.cores(world)}")


def test_cores_are_shared_with_the_ranks_that_may_use_them(tmp_path):
    """srun binds: 3 and 1 cores of their own, one for both; plain python and torchrun leave all to all."""
    assert in_forks(write_cores, 2, tmp_path)[0] == [0, 0]
    assert (tmp_path / "0").read_text() == "3.5 2.0 1.25"
    assert (tmp_path / "1").read_text() == "1.5 2.0 1.25"


def test_the_cores_of_a_control_group(tmp_path):
    file = tmp_path / "cpu.max"
    assert loading.quota(file) is None
    for text, cores in (("max 100000\n", None), ("150000 100000\n", 1.5), ("?", None)):
        file.write_text(text)
        assert loading.quota(file) == cores


def test_here():
    assert 0 < loading.cores(ALONE) <= (os.cpu_count() or 1)


def test_a_pass_is_sent_before_the_one_before_it_is_trained_on(compose, tmp_path, monkeypatch):
    """By stand-ins for a GPU's streams; with the same result, bit for bit."""
    done = []

    class Stream:
        def __init__(self, *_): ...

        def record(self, *_):
            done.append("sent")

        def wait_event(self, event):
            done.append("awaited")

    def step(self, batch, index, plain=Training.training_step):
        done.append("step")
        plain(self, batch, index)

    plain_loader = fitting.training_loader
    states = []
    for ahead in (False, True):
        if ahead:
            for name in ("Stream", "Event", "current_stream"):
                monkeypatch.setattr(torch.cuda, name, Stream)
            monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
            monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
            monkeypatch.setattr(Training, "training_step", step)
            monkeypatch.setattr(
                fitting, "training_loader", lambda *a, **k: SentAhead(plain_loader(*a, **k), torch.device("cpu"))
            )
        config = compose(*TINY, "size.steps=3", "trainer.workers_per_pass=1")
        config = {key: value for key, value in config.items() if key != "fresh"}
        folder = Folder(tmp_path / str(ahead))
        prepare_folder(folder, config)
        fitting.fit(build(config), folder, None)
        states.append(final_state(tmp_path / str(ahead)))
    assert_bit_equal(*states)
    assert done[:6] == ["sent", "sent", "step", "awaited", "sent", "step"]
    assert done.count("sent") == done.count("step") == done.count("awaited") == 6
