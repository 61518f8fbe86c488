"""What fits a machine: workers in a pass, loader processes, images in shared memory; and that a run says so."""

import copy
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from batch_renorm.data.loading import Loading, loading_of
from batch_renorm.running import capacity
from batch_renorm.running.arithmetic import entries
from batch_renorm.running.capacity import Execution, Memory, memory_of
from batch_renorm.running.progress import opening
from batch_renorm.running.ranks import ALONE, World
from batch_renorm.training.module import Training

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
EIGHT = World(0, 0, 8, 1, 0, "torchrun")


def test_a_pass_is_as_large_as_memory_allows_and_stays_so_when_a_run_resumes(made, monkeypatch):
    run, sizes = made("size.workers=50"), []
    worker = 2000 * 16 * 16 * 16  # bytes, of 16 images of 16 x 16 pixels
    for room in (8e9, 13 * worker, 1):
        monkeypatch.setattr(capacity, "PASS_ON_A_CPU", room)
        sizes.append(memory_of(run, ALONE, CPU, {}).workers_per_pass)
    assert sizes == [50, 13, 1]
    first = {"workers_per_pass": 12, "because": memory_of(run, ALONE, CPU, {}).because}
    assert memory_of(run, ALONE, CPU, {"memory": first}).workers_per_pass == 12
    other = {"memory": first | {"because": "the most that fits H200, 1 rank, bf16"}}
    assert memory_of(run, ALONE, CPU, other).workers_per_pass == 1
    assert memory_of(made("trainer.workers_per_pass=1"), ALONE, CPU, {"memory": first}).workers_per_pass == 1
    assert memory_of(made("trainer.workers_per_pass=null"), ALONE, CPU, {}).workers_per_pass == 2


def test_on_a_gpu_the_size_halves_until_it_fits(made, monkeypatch):
    run = made("size.workers=50", "size.evaluation_batch=1000")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    for most, expected in ((50, 50), (30, 25), (12, 12), (5, 3)):
        monkeypatch.setattr(capacity, "fits", lambda run, workers, *_, most=most: workers <= most)
        memory = memory_of(run, ALONE, CUDA, {})
        assert (memory.workers_per_pass, memory.evaluation_batch) == (expected, min(1000, 16 * expected))
    monkeypatch.setattr(capacity, "fits", lambda *_: False)
    with pytest.raises(ValueError, match=r"one worker's minibatch \(16 images\) does not fit the memory of H200"):
        memory_of(run, ALONE, CUDA, {})


def test_a_try_fits_or_not_and_changes_nothing(made, monkeypatch):
    """On a GPU of 100 bytes, played by this CPU."""
    run, gpu = made(), Mock(**{"get_device_properties.return_value.total_memory": 100})
    before = copy.deepcopy(run.training.state_dict())
    monkeypatch.setattr(torch, "cuda", gpu)
    for reserved, answer in ((90, True), (91, False)):
        gpu.max_memory_reserved.return_value = reserved
        assert capacity.fits(run, 1, CPU) == answer
    torch.testing.assert_close(run.training.state_dict(), before, rtol=0, atol=0)
    monkeypatch.setattr(Training, "losses", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    assert not capacity.fits(run, 1, CPU)


def test_the_opening_says_what_will_happen(made):
    run = made("size.workers=50", "size.steps=1000")
    stated = Execution(
        entries(run.arithmetic, CPU), Memory(4, "the most that fits H200", 100), Loading(11, "12 cores of this rank")
    )
    lines = opening(run, EIGHT, stated, Path("runs/glyphs"), 250).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in (
        "resuming at step 250 of 1,000", "800: 50 workers x 16, groups of 16",
        "8, on this machine (started by torchrun)",
        "7 or 6: numbers of ranks that divide 50", "11 a rank (12 cores of this rank)",
        "2, of at most 4 workers (the most that fits H200)",
    ):  # fmt: skip
        assert words in text, text


READS = SimpleNamespace(needs_loader_processes=True, image_bytes=3 * 299 * 299)
MAKES = SimpleNamespace(needs_loader_processes=False, image_bytes=1)


@pytest.fixture
def shared_memory(monkeypatch):
    """A machine with so many free bytes of shared memory."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))


@pytest.mark.parametrize(
    ("cores", "gpu", "processes"), [(12, True, 11), (1, True, 1), (200, True, 16), (2, False, 1), (1.5, False, 0)]
)
def test_processes_follow_the_cores_of_a_rank(shared_memory, cores, gpu, processes):
    shared_memory(1 << 40)
    assert loading_of(READS, "auto", 10, cores, 1, gpu) == Loading(processes, f"{cores} cores of this rank")
    assert loading_of(MAKES, "auto", 10, cores, 1, gpu).processes == 0
    assert loading_of(READS, 7, 10, cores, 1, gpu).processes == 7
    with pytest.raises(ValueError, match=r"trainer.loader_processes=9999 for the .* cores of a rank: say auto"):
        loading_of(READS, 9999, 10, cores, 1, gpu)


def test_no_more_processes_than_shared_memory_holds(shared_memory):
    """8 ranks, 224 + 64 images of 299 pixels: a container's 64 MB hold none, 14 GB hold 9."""
    for free, processes in ((64 << 20, 0), (14 << 30, 9), (1 << 40, 11)):
        shared_memory(free)
        loading = loading_of(READS, "auto", 288, 12.0, 8, gpu=True)
        assert loading.processes == processes
        assert ("/dev/shm" in loading.because) == (processes < 11)
    shared_memory(64 << 20)
    assert loading_of(READS, 0, 1600, 12.0, 8, gpu=False).processes == 0
    full = "/dev/shm holds the images of 0 loader processes .*: give it more .*, or lower trainer.loader_processes=8"
    with pytest.raises(ValueError, match=full):
        loading_of(READS, 8, 1600, 12.0, 8, gpu=False)


def test_cores_are_those_of_a_rank(monkeypatch):
    """srun binds; plain python and torchrun leave all cores to all ranks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert capacity.cores(EIGHT) == 2
    assert capacity.cores(World(0, 0, 8, 1, 0, "srun")) == 16
