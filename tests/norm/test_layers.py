"""The modules: moving averages, limits, modes, and what nn.Module does to them."""

import copy
import math
import pickle
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from norm_reference import as_matrix, by_groups, filled, statistics_of
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from batch_renorm.norm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, StepStatistics, batch_statistics, set_limits


@pytest.mark.parametrize("group_size", [None, 2])
def test_training_is_algorithm_1(group_size):
    layer = filled(BatchRenorm2d(5, momentum=0.1, group_size=group_size, rmax=1.5, dmax=0.5, dtype=torch.float64))
    mu, sigma = layer.mu.clone(), layer.sigma.clone()
    x = torch.randn(6, 5, 4, 3, dtype=torch.float64) * 2 + 1
    y, mu_b, sigma_b, *_ = by_groups(x, x, 6 // (group_size or 6), 1.5, 0.5, mu, sigma, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.mu, mu + 0.1 * (mu_b.mean(0) - mu))
    torch.testing.assert_close(layer.sigma, sigma + 0.1 * (sigma_b.mean(0) - sigma))


def test_evaluation_and_training_without_bounds_use_mu_and_sigma():
    """The paper's identity, and evaluation moves nothing."""
    layer = filled(BatchRenorm2d(5, momentum=0.0, rmax=math.inf, dmax=math.inf, dtype=torch.float64))
    x = torch.randn(6, 5, 4, 3, dtype=torch.float64) * 9 + 50
    matrix = as_matrix(x)
    expected = layer.weight * (matrix - layer.mu) / layer.sigma + layer.bias
    torch.testing.assert_close(as_matrix(layer(x)), expected)
    before = statistics_of(layer)
    torch.testing.assert_close(as_matrix(layer.eval()(x)), expected)
    torch.testing.assert_close(statistics_of(layer), before, rtol=0, atol=0)


def test_limits_of_1_and_0_with_averages_of_the_variance_are_nn_batchnorm():
    """Forward, backward and running statistics of training; torch's running_var is unbiased."""
    torch.manual_seed(0)
    ours = BatchRenorm2d(5, rmax=1, dmax=0, averages="variance", momentum=0.1)
    theirs = nn.BatchNorm2d(5, eps=1e-3, momentum=0.1)
    running_var = torch.ones(5)
    for _ in range(20):
        x = torch.randn(4, 5, 6, 6) * torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0]).view(1, 5, 1, 1) + 1
        g, outputs, gradients = torch.randn_like(x), [], []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            outputs.append(layer(leaf))
            outputs[-1].backward(g)
            gradients.append([leaf.grad, layer.weight.grad, layer.bias.grad])
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)
        running_var += 0.1 * (x.var((0, 2, 3), correction=0) - running_var)
    torch.testing.assert_close(ours.mu, theirs.running_mean)
    torch.testing.assert_close(ours.sigma.square() - 1e-3, running_var, rtol=1e-4, atol=1e-6)


def test_mu_and_sigma_are_the_running_statistics_in_the_papers_terms():
    layer = BatchRenorm2d(3, eps=0.5)
    layer.mu, layer.sigma = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.1])
    assert layer.mu is layer.running_mean
    torch.testing.assert_close(layer.running_var, torch.tensor([0.5, 3.5, 0.0]))
    torch.testing.assert_close(layer.sigma, torch.tensor([1.0, 2.0, 0.5**0.5]))  # no sigma is below sqrt(eps)


@pytest.mark.parametrize(
    ("options", "lacking"),
    [
        ({}, []), ({"scale": False}, ["weight"]), ({"center": False}, ["bias"]), ({"bias": False}, ["bias"]),
        ({"affine": False}, ["weight", "bias"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (BatchRenorm1d, (4, 3)), (BatchRenorm1d, (4, 3, 5)),
        (BatchRenorm2d, (4, 3, 2, 2)), (BatchRenorm3d, (4, 3, 2, 2, 2)),
    ],
)  # fmt: skip
def test_dimensions_and_switches(kind, shape, options, lacking):
    """The state is that of nn.BatchNorm, without what is switched off."""
    layer = kind(3, **options)
    x = torch.randn(shape, requires_grad=True)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer.eval()(x).shape == x.shape
    assert list(layer.state_dict()) == [name for name in nn.BatchNorm2d(3).state_dict() if name not in lacking]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchRenorm2d(0), "num_features.*0"),
        (lambda: BatchRenorm2d(3, momentum=2), "momentum.*2"),
        (lambda: BatchRenorm2d(3, track_running_stats=False), "track_running_stats.*True"),
        (lambda: BatchRenorm2d(3, rmax=0.9), "rmax.*0.9"),
        (lambda: BatchRenorm2d(3, averages="mean"), "averages.*'mean'"),
        (lambda: BatchRenorm2d(3)(torch.zeros(4, 3)), r"BatchRenorm2d.*\(N, C, H, W\).*\(4, 3\)"),
        (lambda: BatchRenorm1d(3)(torch.zeros(4, 3, 2, 2)), "BatchRenorm1d"),
        (lambda: BatchRenorm2d(3).eval()(torch.zeros(4, 5, 2, 2)), "5 channels"),
        (lambda: BatchRenorm2d(3, group_size=4)(torch.zeros(6, 3, 2, 2)), "6 examples.*groups of 4"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_repr():
    layer = BatchRenorm2d(8, group_size=4, scale=False, averages="variance", rmax=1, dmax=0)
    assert repr(layer).startswith("BatchRenorm2d(8, eps=0.001, momentum=0.01, affine=True, ")
    assert "group_size=4, scale=False, center=True, rmax=1, dmax=0, averages='variance')" in repr(layer)


def test_limits_are_filled_in_place_and_only_those_of_the_layers_that_are_set():
    """A CUDA graph reads them where they were when it was recorded."""
    layers = [BatchRenorm2d(4), BatchRenorm1d(5)]
    model, tensors = nn.Sequential(*layers), [layer.limits for layer in layers]
    assert set_limits(model, 1.0, 0.0) == 2
    set_limits(layers[:1], 4.0, 5.0)
    assert [layer.rmax for layer in layers] == [4.0, 1.0]
    with torch.inference_mode():
        set_limits(model, 1.25, 0.0)
    assert {(layer.rmax, layer.dmax) for layer in layers} == {(1.25, 0.0)}
    assert all(layer.limits is tensor for layer, tensor in zip(layers, tensors, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_independent(duplicate):
    layer = filled(BatchRenorm2d(3, momentum=0.1))
    set_limits(layer, 1.5, 0.5)
    x = torch.randn(4, 3, 2, 2)
    twin = duplicate(layer)
    torch.testing.assert_close(twin(x), layer(x))
    assert torch.equal(twin.sigma, layer.sigma)
    set_limits(twin, 1, 0)
    twin(x)
    assert (layer.rmax, layer.dmax) == (1.5, 0.5)
    assert not torch.equal(twin.sigma, layer.sigma)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mu_and_sigma_stay_float32_in_half_precision(dtype):
    """A half precision mu stalls: this one would never get past 2.5."""
    layer = filled(BatchRenorm2d(3, rmax=1, dmax=0))
    exact = layer.mu.clone()
    layer.to(dtype)
    assert layer.weight.dtype == dtype
    assert layer.mu.dtype == layer.sigma.dtype == layer.limits.dtype == torch.float32
    assert torch.equal(layer.mu, exact)
    for _ in range(600):
        y = layer(torch.full((2, 3, 2, 2), 3.0, dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(layer.mu, torch.full((3,), 3.0), rtol=1e-2, atol=1e-2)
    assert layer.eval()(torch.zeros(2, 3, 2, 2, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float32, torch.bfloat16)],
)
@pytest.mark.parametrize("averages", ["sigma", "variance"])
def test_input_and_layer_of_different_precision(x_dtype, dtype, averages):
    layer = filled(BatchRenorm2d(5, averages=averages)).to(dtype)
    exact, x = copy.deepcopy(layer).double(), torch.randn(16, 5, 20, 20).to(x_dtype)
    for training in (True, False):
        y, expected = layer.train(training)(x), exact.train(training)(x.double())
        torch.testing.assert_close(y, expected.to(x_dtype), rtol=1e-5, atol=1e-5)
    assert layer.mu.dtype == torch.promote_types(dtype, torch.float32)
    assert layer.half().mu.dtype == torch.float32


@pytest.mark.parametrize("group_size", [None, 2])
def test_tensors_without_values(group_size):
    """Tools that count operations or memory train a model on the meta device or in FakeTensorMode."""
    for mode, device in ((nullcontext(), "meta"), (FakeTensorMode(), "cpu")):
        with mode:
            layer = BatchRenorm2d(3, device=device, group_size=group_size)
            x = torch.randn(4, 3, 2, 2, device=device, requires_grad=True)
            layer(x).sum().backward()
            assert x.grad.shape == x.shape
            assert "BatchRenorm2d(3" in repr(layer)
    layer = BatchRenorm2d(3, device="meta", group_size=group_size)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(4, 3, 2, 2)).isfinite().all()
    assert layer.rmax == 3


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_touch_the_statistics(dtype, group_size, memory_format):
    """Nor the dtype of y. Where parts of a batch are merged, products in bfloat16 would leave three digits."""
    x = (torch.randn(32, 4, 30, 30) * 2 + 3).to(dtype).contiguous(memory_format=memory_format)
    layer = BatchRenorm2d(4, momentum=1, group_size=group_size)
    exact = copy.deepcopy(layer).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == dtype
    exact(x.double())
    torch.testing.assert_close(layer.mu.double(), exact.mu, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.sigma.double(), exact.sigma, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("averages", ["sigma", "variance"])
@pytest.mark.parametrize("group_size", [None, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_batch_that_is_not_finite_never_poisons_mu_and_sigma(value, group_size, averages, deferred):
    layer = filled(BatchRenorm2d(3, momentum=0.5, group_size=group_size, averages=averages))
    statistics = StepStatistics(layer) if deferred else None
    mu, sigma = layer.mu.clone(), layer.sigma.clone()

    def step(x):
        y = layer(x)
        if statistics is not None:
            statistics.update()
        return y

    x = torch.randn(4, 3, 2, 2)
    x[0, 1, 0, 0] = value
    with pytest.warns(RuntimeWarning, match=r"BatchRenorm2d\(3\).*in 1 of 3 channels"):
        step(x)
    assert (layer.mu == mu).tolist() == (layer.sigma == sigma).tolist() == [False, True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step(torch.randn(4, 3, 2, 2)).isfinite().all()
    assert (layer.mu != mu).all()


def test_batch_statistics_is_batchnorm_of_the_whole_batch_or_of_groups():
    model = filled(BatchRenorm2d(3, group_size=2)).eval()
    before = statistics_of(model)
    x = torch.randn(9, 3, 2, 2) * 3 + 1  # no multiple of the layer's own group_size
    for group_size in (None, 3):
        with batch_statistics(model, group_size):
            y = model(x)
        parts = x.split(group_size or 9)
        expected = [nn.functional.batch_norm(part, None, None, *model.parameters(), True, eps=1e-3) for part in parts]
        torch.testing.assert_close(y, torch.cat(expected))
        assert not torch.allclose(model(x), y)
    torch.testing.assert_close(statistics_of(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recomputed", "tolerance"),
    [
        (lambda f: partial(checkpoint, f, use_reentrant=False), 0),
        (lambda f: partial(checkpoint, f, use_reentrant=True), 0),
        (lambda f: torch.compile(lambda x: checkpoint(f, x, use_reentrant=False), backend="aot_eager"), 1e-5),
    ],
    ids=["eager", "reentrant", "compiled"],
)
def test_checkpointing_is_exact_with_the_deferred_update_and_else_an_error(recomputed, tolerance):
    """Recomputed with mu and sigma that the first forward has moved, gradients were 12% off, compiled ones 37%."""
    x = (torch.randn(4, 3, 2, 2) * 3 + 1).requires_grad_()
    results = []
    for wrap in (lambda f: f, recomputed):
        layer = BatchRenorm2d(3, momentum=0.1, group_size=2)
        run, statistics = wrap(layer), StepStatistics(layer)
        for _ in range(3):
            x.grad = None
            run(x).tanh().sum().backward()
            statistics.update()
        results.append((x.grad, layer.weight.grad, layer.mu, layer.sigma))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    statistics.release()
    with pytest.raises(RuntimeError, match=r"activation checkpointing.*StepStatistics"):
        run(x).square().sum().backward()
