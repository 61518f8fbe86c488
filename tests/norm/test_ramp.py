"""The ramp as a function of the step, and inside the layer."""

import copy
import math
from functools import partial

import pytest
import torch
from norm_reference import network, statistics_of
from torch import nn

from batch_renorm.norm import Ramp, StepStatistics, convert_batchnorm, set_limits, to_batchnorm, training_normalization


def test_the_paper_s_ramp():
    """rmax = 1, dmax = 0 for 5k steps, then linear to rmax = 3 at 40k, dmax = 5 at 25k."""
    ramp = Ramp.of_length(140_000)
    assert ramp == Ramp(5000, 40000, 25000)
    assert ramp(0) == ramp(5000) == (1, 0)
    assert ramp(15000) == (1 + 2 * 10 / 35, 2.5)
    assert ramp(25000) == (1 + 2 * 20 / 35, 5)
    assert ramp(40000) == ramp(10**9) == (3, 5)


def test_knees_scale_with_the_run_and_may_coincide_and_no_bound_is_one_at_once():
    assert Ramp.of_length(1400, rmax=2.0, dmax=1.0) == Ramp(50, 400, 250, rmax=2.0, dmax=1.0)
    assert Ramp(0, 0, 0)(0) == (3, 5)
    assert Ramp(10, 10, 10)(9) == (1, 0)
    free = Ramp(2, 10, 10, rmax=math.inf, dmax=math.inf)
    assert [free(step) for step in (0, 2, 3, 99)] == [(1, 0), (1, 0), (math.inf, math.inf), (math.inf, math.inf)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 4, 10), "rmax_end=4.*start=5"),
        ((5, 10, 4), "dmax_end=4.*start=5"),
        ((-1, 4, 4), "start=-1"),
        ((0, 1, 1, 0.5), "rmax.*0.5"),
        ((0, 1, 1, 3.0, -2.0), "dmax.*-2"),
        ((float("nan"), 1, 1), "start=nan"),
    ],
)
def test_bad_ramps_name_the_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ramp(*arguments)


@pytest.mark.parametrize("ramp", [Ramp(2, 7, 5), Ramp(3, 3, 3), Ramp(1, 4, 6, rmax=math.inf), Ramp(0, math.inf, 2)])
def test_of_a_tensor_it_is_the_same(ramp, monkeypatch):
    """Whether its value may be read or, on a GPU and in a graph, not."""
    for readable in (True, False):
        monkeypatch.setattr("batch_renorm.norm.ramp.can_read_values", lambda _, readable=readable: readable)
        for step in range(9):
            assert torch.equal(ramp.of_tensor(torch.tensor(step)), torch.tensor(ramp(step)))


RAMP = Ramp(1, 5, 3)
OPTIONS = {"momentum": 0.1, "group_size": 2}


def train(model, steps, drive=None, statistics=None):
    """Gradients of every step; drive sets the limits as a training loop does."""
    gradients = []
    for step in steps:
        if drive is not None:
            set_limits(model, *drive(step))
        model.zero_grad()
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)) * 3 + 2
        for part in x.split(4 if statistics is None else 2):
            model(part).square().mean().backward()
        if statistics is not None:
            statistics.update()
        gradients += [parameter.grad.clone() for parameter in model.parameters()]
    return gradients


assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("once_a_step", [False, True])
def test_in_the_layer_it_is_set_limits_at_every_step(once_a_step):
    alone, driven = network(**OPTIONS, ramp=RAMP), network(**OPTIONS)
    both = [StepStatistics(model) if once_a_step else None for model in (alone, driven)]
    assert_same(train(alone, range(7), statistics=both[0]), train(driven, range(7), drive=RAMP, statistics=both[1]))
    assert_same(statistics_of(alone), statistics_of(driven))
    assert (alone[1].rmax, alone[4].dmax) == (3, 5)
    set_limits(alone, 2.0, 1.0)  # ends it
    train(alone, [9])
    assert (alone[1].rmax, alone[4].dmax) == (2, 1)


def test_a_checkpoint_goes_on_where_it_was(tmp_path):
    uninterrupted, first, second = (network(**OPTIONS, ramp=RAMP) for _ in range(3))
    expected = train(uninterrupted, range(6))
    train(first, range(3))
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    second.load_state_dict(torch.load(tmp_path / "checkpoint.pt"))
    assert second[1].rmax == RAMP(3)[0]
    twin = copy.deepcopy(first)
    for resumed in (second, twin):
        assert_same(train(resumed, range(3, 6)), expected[len(expected) // 2 :])
    assert "ramp=Ramp(start=1, rmax_end=5" in repr(second)
    assert type(to_batchnorm(twin)[1]) is nn.BatchNorm2d


def test_it_begins_at_the_conversion_and_counts_updates_alone():
    stock = nn.Sequential(nn.BatchNorm2d(3))
    stock(torch.randn(4, 3, 5, 5))
    model, x = convert_batchnorm(stock, ramp=Ramp(0, 2, 2)), torch.randn(4, 3, 5, 5)
    assert (model[0].rmax, model[0].dmax) == (1, 0)
    with training_normalization(model):
        model(x)
    model.eval()(x)
    assert model[0].rmax == 1
    model.train()(x)
    assert (model[0].rmax, model[0].dmax) == (2, 2.5)
