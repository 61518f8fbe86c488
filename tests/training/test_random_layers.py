"""Dropout and drop path keep the promises: masks are functions of (seed, step, worker, slot), like the images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath
from torch import nn

from batch_renorm.data.loaders import Draw
from batch_renorm.errors import UserError
from batch_renorm.training.random_layers import Masks, RandomLayers, image_keys
from tests.conftest import TINY
from tests.running.runs import assert_close, final_state, train_in_forks, trained

NETWORK = [
    "model=timm", "model.name=resnet10t", "+model.drop_rate=0.3", "+model.drop_path_rate=0.3", "data.size=32",
    "data.labels=8", "data.val_images=4", "size.train_sample=8", "size.evaluation_batch=16", "size.minibatch=4",
    "evaluation.labels_per_minibatch=2", "size.workers=3", "experiment=noniid_renorm",
]  # fmt: skip


def masks(draw, images):
    result = Masks()
    result.keys = image_keys(draw, images)
    return result


def test_a_workers_masks_are_those_it_draws_alone():
    """All workers of a step in one pass, and each in its own; other steps, seeds and layers have other masks."""
    with masks(Draw(3, 7, 0, 4), 12):
        together = [F.dropout(torch.ones(12, 5, 6), 0.4), F.dropout2d(torch.ones(12, 5, 6, 6), 0.4)]
    for worker in range(3):
        with masks(Draw(3, 7, worker, 4), 4):
            alone = [F.dropout(torch.ones(4, 5, 6), 0.4), F.dropout2d(torch.ones(4, 5, 6, 6), 0.4)]
        its_own = [of_all[4 * worker : 4 * worker + 4] for of_all in together]
        torch.testing.assert_close(alone, its_own, rtol=0, atol=0)
    assert (together[1].flatten(2).std(2) == 0).all()  # whole channels
    for other in (Draw(3, 8, 0, 4), Draw(4, 7, 0, 4)):
        with masks(other, 12):
            assert not torch.equal(F.dropout(torch.ones(12, 5, 6), 0.4), together[0])
    with masks(Draw(3, 7, 0, 4), 12):
        first, second = (F.dropout(torch.ones(12, 50), 0.4) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.Dropout2d(0.3), DropPath(0.3)])
def test_layers_keep_the_mean_and_drop_at_their_rate(layer):
    with masks(Draw(0, 0, 0), 20_000):
        y = layer(torch.ones(20_000, 3, 2, 2))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(layer.eval()(torch.ones(2, 3, 2, 2)), torch.ones(2, 3, 2, 2))


@pytest.mark.slow
def test_resumed_and_uninterrupted_are_bit_equal_and_ranks_and_passes_agree(compose, tmp_path):
    options = [*TINY, *NETWORK, "size.evaluate_every=1"]
    whole = trained(compose(*options), tmp_path / "whole").path
    trained(compose(*options), tmp_path / "resumed", whole / "checkpoints/step00000001.ckpt")
    assert_close(final_state(tmp_path / "resumed"), final_state(whole), 0)
    train_in_forks(compose(*options, "trainer.workers_per_pass=1"), tmp_path / "ranks", 2)
    assert_close(final_state(tmp_path / "ranks"), final_state(whole), 3e-6)


class Layer(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x + torch.randn_like(x), "by other means than dropout and drop path"),
        (lambda x: x + float(np.random.rand()), "by other means than dropout and drop path"),  # noqa: NPY002
        (lambda x: x * x.new_empty(1, *x.shape[1:]).bernoulli_(0.5), "for 4 images, and not"),
    ],
)
def test_other_random_numbers_are_refused(forward, message):
    layer, images = Layer(forward), torch.ones(4, 3, 8, 8)
    with pytest.raises(UserError, match=message), RandomLayers(layer).drawing(Draw(0, 0, 0), 4, images.device):
        layer(images)


@pytest.mark.parametrize(
    ("layer", "is_random"), [(nn.Identity(), False), (nn.Dropout(), True), (Layer(F.dropout), True)]
)
def test_networks_without_random_layers_pay_nothing(layer, is_random):
    """Whether a layer is random shows in the first forward, not in its attributes."""
    random_layers, images = RandomLayers(layer), torch.ones(4, 3, 8, 8)
    with random_layers.drawing(Draw(0, 0, 0), 4, images.device):
        layer(images)
    assert random_layers.is_random == is_random


def test_dropblock_which_sees_the_pass_is_refused():
    with pytest.raises(UserError, match="scales an image by the others of its pass: use drop path"):
        RandomLayers(nn.Sequential(DropBlock2d(0.3)))


def test_a_compiled_network_without_random_layers_is_compiled_once():
    network, x = nn.Linear(6, 6), torch.ones(4, 6)
    random_layers, graphs = RandomLayers(network, compiled=True), []
    compiled = torch.compile(network, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for step in range(3):
        with random_layers.drawing(Draw(0, step, 0), 4, x.device):
            compiled(x)
    assert len(graphs) == 1


@pytest.mark.slow
def test_compiled_masks_are_the_same():
    network = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.4), DropPath(0.4))
    random_layers, x = RandomLayers(network), torch.randn(4, 6)
    compiled = torch.compile(network, backend="eager")
    for step in range(3):
        results = []
        for model in (network, compiled):
            with random_layers.drawing(Draw(0, step, 0), 4, x.device):
                results.append(model(x))
        torch.testing.assert_close(*results)
