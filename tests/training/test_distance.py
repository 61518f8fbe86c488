"""The distance between training's and inference's activations, on models whose answer is known."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from batch_renorm.norm import BatchRenorm2d, StepStatistics, set_limits, training_normalization
from batch_renorm.training.distance import activation_distances

CPU = torch.device("cpu")


@pytest.fixture
def case():
    """Two norm layers, groups of 4, mu and sigma that no batch has; a source of 48 images; 6 minibatches of 8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        BatchRenorm2d(3, group_size=4), nn.ReLU(inplace=True), nn.Conv2d(3, 5, 3), BatchRenorm2d(5, group_size=4)
    )
    with torch.no_grad():
        for norm in (model[0], model[3]):
            norm.mu.normal_()
            norm.sigma = torch.empty_like(norm.sigma).uniform_(0.5, 2)
    everything = torch.randn(48, 3, 6, 6) * 2 + 1

    def fetch(split, indices, draw):
        assert (split, draw) == ("val", None)
        return everything[indices]

    source = SimpleNamespace(all=everything, fetch=fetch, images=lambda fetched, device: torch.cat(fetched))
    return model.eval(), source, np.arange(48).reshape(6, 8)


def by_batchnorm(model, images):
    """Batchnorm's distances by torch's own layers: train mode against eval mode, group by group."""
    plain = copy.deepcopy(model)
    for at in (0, 3):
        layer = model[at]
        plain[at] = nn.BatchNorm2d(layer.num_features, layer.eps, momentum=0.0)
        plain[at].running_mean, plain[at].running_var = layer.mu.clone(), layer.sigma**2 - layer.eps
    outputs = {0: [], 3: []}
    for at, kept in outputs.items():
        plain[at].register_forward_hook(lambda layer, inputs, output, kept=kept: kept.append(output.clone()))
    for training in (True, False):
        plain.train(training)
        for group in images.split(4):
            plain(group)
    halves = [torch.stack(kept).chunk(2) for kept in outputs.values()]
    return [((trained - inferred).norm() / inferred.norm()).item() for trained, inferred in halves]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batchnorm_is_as_far_as_torchs_own_layers_are(case, ranks, monkeypatch):
    """The last rank of several gets the others' sums from the all-reduce."""
    model, source, minibatches = case
    set_limits(model, 1.0, 0.0)
    sums = []

    def all_reduce(part):
        sums.append(part.clone())
        part.copy_(sum(sums))

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    for rank in range(ranks):
        distances = activation_distances(model, source, minibatches, CPU, rank, ranks)
    assert list(distances) == ["activation_distance", "activation_distance/0", "activation_distance/3"]
    mean, *layers = distances.values()
    assert mean == pytest.approx(np.mean(layers))
    assert layers == pytest.approx(by_batchnorm(model, source.all), rel=1e-4)


def test_batch_renorm_without_bounds_computes_the_same_in_training_and_inference(case):
    """The paper's point, section 3: with r and d the activations do not depend on the minibatch."""
    model, source, minibatches = case
    set_limits(model, 1e6, 1e6)
    assert max(activation_distances(model, source, minibatches, CPU).values()) < 1e-6
    set_limits(model, 1.1, 0.1)
    assert activation_distances(model, source, minibatches, CPU)["activation_distance"] > 0.01


def test_measuring_changes_nothing(case):
    model, source, minibatches = case
    statistics = StepStatistics(model)
    before = copy.deepcopy(model.state_dict())
    hooks = [len(layer._forward_hooks) for layer in model.modules()]
    activation_distances(model, source, minibatches, CPU)
    with training_normalization(model):
        model(source.all)
    assert not any(layer.training for layer in model.modules())
    assert hooks == [len(layer._forward_hooks) for layer in model.modules()]
    statistics.update()  # nothing was added to the step's sums
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
