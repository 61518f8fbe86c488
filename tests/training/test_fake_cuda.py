"""A GPU's step without a GPU: real modules on tensors that have a shape, a device "cuda" and no data.

What a first hour on a node would be lost on: a tensor left on the CPU, and the host waiting for the device in the
middle of a step.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from batch_renorm.data.loaders import Draw, Fetched, Pass, SentAhead
from batch_renorm.running.build import build
from batch_renorm.training.evaluation import evaluate
from tests.data.imagenet_files import write_folders
from tests.training.fake_cuda import CUDA, Waits, backward, fake_cuda


@pytest.fixture
def run(compose, tmp_path):
    """The paper's Inception-v3 in bfloat16, as on one of 8 ranks, with empty images in place of files'."""
    run = build(compose(
        "experiment=noniid_renorm", "scale=imagenet", "data=folder", f"data.root={write_folders(tmp_path)}",
        "size.minibatch=4", "evaluation.labels_per_minibatch=2", "trainer.precision=bf16",
    ))  # fmt: skip

    def fetch(split, indices, draw):
        pixels = torch.empty(len(indices), 3, run.source.size, run.source.size, dtype=torch.uint8)
        return Fetched(pixels, None if draw is None else torch.empty(len(indices), 5))

    run.source.fetch = fetch
    strategy = SimpleNamespace(block_backward_sync=nullcontext)
    run.training._trainer = SimpleNamespace(
        world_size=8, global_step=0, max_steps=140_000, loggers=[Mock()], strategy=strategy
    )
    return run


def waits_of_step(run, step, passes):
    """Where the host waits in a step; `passes` are the numbers of images in its passes."""
    fetch, draw = run.source.fetch, Draw(0, step, 0, minibatch=4)
    batches = [
        Pass(
            step, number == len(passes), [fetch("train", range(images), draw)],
            torch.zeros(images, dtype=torch.int64), draw=draw,
        )
        for number, images in enumerate(passes, 1)
    ]  # fmt: skip
    with Waits() as places:
        for batch in SentAhead([batch.pin_memory() for batch in batches], CUDA):
            run.training.training_step(batch, 0)
    return places


@pytest.mark.slow
def test_a_step_of_inception_waits_for_nothing_and_an_evaluation_for_its_result_alone(run):
    """Steps in one pass and in two; a step that is logged reads its numbers, and no others."""
    training, (logger,) = run.training, run.training._trainer.loggers
    with fake_cuda():
        training.to(CUDA)
        optimizer = training.configure_optimizers()
        training.optimizers, training.manual_backward = lambda *_: optimizer, backward
        training.random_layers._checked = True  # it would compare the generators' states, which are fake here
        strays = [
            f"{name}.{key}"
            for name, part in training.named_modules()
            for key, value in {**vars(part), **part._parameters, **part._buffers}.items()
            if isinstance(value, torch.Tensor) and value.device != CUDA
        ]
        assert strays == []
        waits_of_step(run, 6990, [28])  # makes the optimiser's state, the list of tensors to average
        assert waits_of_step(run, 7001, [16, 12]) == []
        logger.log_metrics.assert_not_called()
        logged = waits_of_step(run, 7049, [28])
        with Waits() as evaluated:
            evaluate(training.inference_model(7050), run.source, run.evaluation.measurements(run.source), CUDA)
    assert 0 < len(logged) < 96  # a few, and not one for each norm layer
    row = logger.log_metrics.call_args.args[0]
    assert {"loss", "gradient_norm", "r_clipped", "seconds_step", "images_per_second"} <= set(row)
    assert evaluated
    assert all(wait.startswith("a value is read at batch_renorm/training/evaluation.py") for wait in evaluated)


def test_what_the_test_above_is_to_notice():
    with fake_cuda(), Waits() as places:
        x, y = torch.ones(3, device=CUDA), torch.ones(3)
        y.pin_memory().to(CUDA, non_blocking=True)
        torch.full((3,), 2.0, device=CUDA) + torch.zeros_like(x)
        assert places == []
        x.sum().item()
        torch.tensor([1.0, 2.0, 3.0], device=CUDA)
        y.to(CUDA, non_blocking=True)
        y.pin_memory().to(CUDA)
        assert len(places) == 4, places
        with pytest.raises(Exception, match="device"):
            x + y
