"""How a device computes, and how much at once: chosen once, stated, and without a trace in what is trained."""

import contextlib
import copy
import importlib
import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from batch_renorm.running.opening import in_words, opening

from batch_renorm.running import memory
from batch_renorm.running.arithmetic import Arithmetic, check_ranks, choose_arithmetic, entries
from batch_renorm.running.build import build
from batch_renorm.running.fitting import fit
from batch_renorm.running.folder import Folder, prepare_folder
from batch_renorm.running.launch import ALONE, World
from batch_renorm.training.module import Training
from tests.conftest import TINY
from tests.running.checkpoint_files import assert_close, final_state

CPU = torch.device("cpu")


@pytest.fixture
def made(compose):
    def of(*overrides):
        return build({k: v for k, v in compose(*TINY, *overrides).items() if k != "fresh"})

    return of


def test_the_largest_pass_is_found_without_touching_weights_or_random_numbers(made, monkeypatch):
    run = made("size.workers=50")
    before, stream = copy.deepcopy(run.training.state_dict()), torch.get_rng_state()
    found = [memory.workers_per_pass(run, ALONE, CPU, {})["workers_per_pass"]]
    for free in (2**28, 2**26, 2**20):
        monkeypatch.setattr(memory, "free_memory", lambda free=free: free)
        found.append(memory.workers_per_pass(run, ALONE, CPU, {})["workers_per_pass"])
    assert found[0] == 50
    assert found == sorted(found, reverse=True)
    assert 1 == found[-1] < found[-2] < found[1] < 50
    assert torch.equal(stream, torch.get_rng_state())
    for name, value in run.training.state_dict().items():
        assert torch.equal(value, before[name]), name
    monkeypatch.setattr(memory, "on_cpu", lambda *_: 0)
    with pytest.raises(ValueError, match=r"one worker's minibatch .* does not fit the memory of cpu"):
        memory.workers_per_pass(run, ALONE, CPU, {})


def test_a_resumed_run_takes_the_size_that_it_began_with_unless_the_machine_is_another(made, monkeypatch):
    run = made("size.workers=50")
    monkeypatch.setattr(memory, "free_memory", lambda: 2**24)
    first = memory.workers_per_pass(run, ALONE, CPU, {})
    monkeypatch.setattr(memory, "free_memory", lambda: 2**40)
    assert memory.workers_per_pass(run, ALONE, CPU, {"memory": first}) == first
    assert (
        memory.workers_per_pass(
            run, ALONE, CPU, {"memory": first | {"because": "the most that fits H200, 1 rank, bf16"}}
        )
        != first
    )
    said = made("size.workers=50", "trainer.workers_per_pass=7")
    assert memory.workers_per_pass(said, ALONE, CPU, {"memory": first})["workers_per_pass"] == 7


def test_sizes_to_try_are_those_that_save_a_pass():
    assert memory.candidates(50)[:6] == [50, 25, 17, 13, 10, 9]
    for size in memory.candidates(50):
        assert math.ceil(50 / (size - 1)) > math.ceil(50 / size) if size > 1 else True


def test_auto_is_what_the_run_began_with(made):
    began = {"precision": "bf16", "channels_last": False, "compile": False}
    assert choose_arithmetic(made().machine, CPU, None) == Arithmetic(32, True, False, True, False)
    assert choose_arithmetic(made().machine, CPU, began) == Arithmetic("bf16", False, False, True, False)
    assert choose_arithmetic(made("trainer.precision=32").machine, CPU, began).precision == 32


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ("precision=bf16", 0.3),
        ("channels_last=false", 3e-5),
        ("compile=true", 3e-5),
        ("compile=reduce-overhead", 3e-5),
        ("deterministic=true", 0),
    ],
)
def test_options_change_no_name_and_the_result_by_rounding_at_most(compose, tmp_path, monkeypatch, option, tolerance):
    """Compiled by a backend that needs no C++ compiler."""
    monkeypatch.setattr(
        "torch.nn.Module.compile",
        lambda self, **options: setattr(
            self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager", **options)
        ),
    )
    states = []
    for name, options in (("plain", []), ("option", [f"trainer.{option}"])):
        config = {k: v for k, v in compose(*TINY, *options).items() if k != "fresh"}
        folder = Folder(tmp_path / name)
        prepare_folder(folder, config)
        try:
            fit(build(config), folder, None)
        finally:
            torch.use_deterministic_algorithms(False)
        states.append(final_state(tmp_path / name))
        key, _, value = option.partition("=")
        if options:
            assert str(folder.record()["arithmetic"][key]).lower() == value
    assert all(value.dtype == states[0][name].dtype for name, value in states[1].items())
    assert_close(*states, tolerance)
    if option == "precision=bf16":
        assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_opening_says_what_will_happen(made):
    run = made("size.workers=50", "size.steps=1000")
    world = World(0, 0, 8, 1, 0, "torchrun")
    stated = {
        "memory": {"workers_per_pass": 4, "because": "the most that fits H200"},
        "arithmetic": entries(run.arithmetic, CPU),
        "loading": {"processes": 11, "because": "12 cores of this rank"},
    }
    lines = opening(run, world, stated, Path("runs/glyphs"), 250, 400.0).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in (
        "resuming at step 250 of 1,000", "800: 50 workers x 16, groups of 16",
        "8, on this machine (started by torchrun)",
        "7 on ranks 0-1, 6 on the others: busy 89%", "10 or 5 ranks", "11 a rank (12 cores of this rank)",
        "2, of at most 4 workers (the most that fits H200)", "in 25 min and the evaluations",
    ):  # fmt: skip
        assert words in text, text


def noted(references, tensor):
    references.append(weakref.ref(tensor))
    return tensor


def test_an_evaluations_batch_halves_until_it_fits(made, monkeypatch):
    """And stays a whole number of minibatches, as far as there is one."""
    run, tried, room = made("size.workers=50", "size.evaluation_batch=100"), [], {}

    def fits(attempt, device):
        seen = []
        few = run.config["minibatch"]["size"]
        monkeypatch.setattr(memory, "sample", lambda run, images, device: seen.append(images) or real(run, few, device))
        attempt(CPU)
        tried.extend(seen)
        return seen[0] <= room["images"]

    real = memory.sample
    monkeypatch.setattr(memory, "fits", fits)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    gpu = SimpleNamespace(type="cuda")
    for images, expected in ((96, 100), (30, 25)):
        room["images"] = images
        assert memory.evaluation_batch(run, ALONE, gpu) == expected
    assert tried == [96, 96, 48, 16]
    room["images"] = 0
    with pytest.raises(ValueError, match=r"evaluation.batch_size=100 does not fit the device's memory, nor does 1:"):
        memory.evaluation_batch(run, ALONE, gpu)
    assert memory.evaluation_batch(run, ALONE, CPU) == 100


def test_a_gpu_without_bfloat16_says_so_and_computes_in_float32(made, monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    assert choose_arithmetic(made().machine, gpu, None).precision == 32
    run = made()
    began = {"precision": "bf16", "channels_last": True, "compile": False}
    choice = choose_arithmetic(run.machine, gpu, began)
    assert choice.precision == 32
    assert in_words(entries(choice, gpu)) == "float32, this GPU has no bfloat16, channels last"
    with pytest.raises(ValueError, match=r"trainer.precision=bf16, but Tesla V100 has no bfloat16: say 32, or auto"):
        choose_arithmetic(made("trainer.precision=bf16").machine, gpu, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert choose_arithmetic(made().machine, gpu, None).precision == "bf16"


def test_ranks_that_would_compute_differently_are_refused():
    ours, other = Arithmetic("bf16", True, False, True, False), Arithmetic(32, True, False, True, False)
    check_ranks([ours, ours])
    with pytest.raises(ValueError, match=r"rank 0 computes with trainer.precision=bf16, rank 2 with 32: say"):
        check_ranks([ours, ours, other])
    with pytest.raises(SystemExit):
        check_ranks([ours, ours, other], rank=1)  # one line, from rank 0


def test_cuda_graphs_of_several_passes_are_refused(compose, tmp_path):
    config = compose(*TINY, "trainer.compile=reduce-overhead", "trainer.workers_per_pass=1")
    config = {k: v for k, v in config.items() if k != "fresh"}
    folder = Folder(tmp_path)
    prepare_folder(folder, config)
    words = "trainer.compile=reduce-overhead records CUDA graphs, which take one pass a step, and this run makes 2"
    with pytest.raises(ValueError, match=words):
        fit(build(config), folder, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="then it trains on that")
def test_a_mac_trains_on_its_cpu_and_not_half_on_its_gpu(compose, tmp_path, monkeypatch):
    """Lightning's `auto` takes a Mac's GPU; images, mu and sigma, and the memory's search would not."""
    for module in ("lightning_fabric", "pytorch_lightning"):
        accelerator = importlib.import_module(f"{module}.accelerators.mps").MPSAccelerator
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: True))
        monkeypatch.setattr(accelerator, "auto_device_count", staticmethod(lambda: 1))
    config = {k: v for k, v in compose(*TINY, "trainer.accelerator=auto").items() if k != "fresh"}
    folder = Folder(tmp_path)
    prepare_folder(folder, config)
    assert fit(build(config), folder, None) == 2
    assert folder.record()["device"].startswith("cpu")


@pytest.mark.slow
def test_on_a_gpu_the_size_halves_until_it_fits(made, monkeypatch):
    """The search alone, on a GPU played by this CPU: 50 workers are too many, and 25 leave too little free."""
    run, tried, losses = made("size.workers=50"), [], Training.losses
    made_then, alive, minibatch = [], [], run.config["minibatch"]["size"]

    def small(self, model, images, labels):
        made_then.extend(map(weakref.ref, (model, images, labels)))
        tried.append(len(images) // minibatch)
        if len(images) > 25 * minibatch:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self, model, images[:minibatch], labels[:minibatch])

    monkeypatch.setattr(Training, "losses", small)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(r for r in made_then if r() is not None))
    plain = torch.empty_like
    monkeypatch.setattr(memory.torch, "empty_like", lambda *a, **k: noted(made_then, plain(*a, **k)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=100))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 5 * tried[-1])
    before = copy.deepcopy(run.training.state_dict())
    assert memory.on_cuda(run, CPU, 50) == 17
    assert tried == [50, 25, 17]
    assert len(made_then) > 3 * 3
    assert alive == []  # a candidate that does not fit leaves nothing to the next
    for name, value in run.training.state_dict().items():
        assert torch.equal(value, before[name]), name
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 99)
    assert memory.on_cuda(run, CPU, 50) == 0
