"""The layer in the hands of tools that know nn.BatchNorm: what they look for, freeze, estimate and trace."""

import copy

import pytest
import timm
import torch
from norm_reference import algorithm1, filled, network, statistics_of
from timm.utils import freeze, unfreeze
from torch import nn
from torch.func import functional_call, grad, jacfwd, stack_module_state, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from batch_renorm.norm import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    StepStatistics,
    convert_batchnorm,
    set_limits,
    to_batchnorm,
)


def moved(model, x=None):
    before = statistics_of(model)
    model(torch.randn(4, 3, 12, 12) + 3 if x is None else x)
    return any(not torch.equal(value, before[name]) for name, value in statistics_of(model).items())


# ---- state ---------------------------------------------------------------------------------------


def test_checkpoints_go_both_ways():
    ours, theirs = network(eps=1e-5).eval(), network(nn.BatchNorm2d).eval()
    x = torch.randn(2, 3, 12, 12)
    nn.init.uniform_(theirs[1].weight)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    ours.train()(x)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(theirs(x), ours.eval()(x))


def test_the_averages_are_float32_whoever_made_them_half():
    x, model = torch.randn(4, 3, 12, 12), network()
    model.load_state_dict({name: value.bfloat16() for name, value in model.state_dict().items()}, assign=True)
    assert model[1].running_mean.dtype == model[4].running_var.dtype == torch.float32
    model(x.bfloat16())
    model = network()
    for layer in (model[1], model[4]):  # as FSDP's buffer_dtype does
        layer.running_mean.data, layer.running_var.data = layer.running_mean.bfloat16(), layer.running_var.bfloat16()
    model(x)
    assert model[1].running_mean.dtype == model[4].running_var.dtype == torch.float32


# ---- freezing, estimating, synchronising ---------------------------------------------------------


def test_lightning_freezes_and_thaws_it():
    from pytorch_lightning.callbacks import BaseFinetuning

    model = network()
    BaseFinetuning.freeze(model, train_bn=False)
    assert not moved(model)
    BaseFinetuning.make_trainable(model)
    assert moved(model)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])  # nn.BatchNorm2d, and BatchNormAct2d
def test_timm_freezes_and_thaws_it(name):
    """Thawed it is batchnorm, as the README says, which convert_batchnorm mends."""
    torch.manual_seed(0)
    model, x = convert_batchnorm(timm.create_model(name, num_classes=5)), torch.randn(2, 3, 32, 32)
    model(x)
    expected = model.eval()(x)
    freeze(model)
    torch.testing.assert_close(model.train()(x), expected, rtol=1e-4, atol=1e-5)
    assert not moved(model, x)
    unfreeze(model)
    torch.testing.assert_close(convert_batchnorm(model).eval()(x), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model.bn1, BatchRenorm)


def test_a_step_says_that_a_tool_has_put_batchnorm_in_the_layers_place():
    """Lightning's sync_batchnorm does it between the construction of a model and the first step."""
    model = network()
    statistics = StepStatistics(model)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(RuntimeError, match=r"replaced every BatchRenorm layer.*sync_batchnorm"):
        statistics.update()
    for use in (StepStatistics, lambda model: set_limits(model, 1, 0)):
        with pytest.raises(ValueError, match=r"convert_batchnorm.*sync_batchnorm"):
            use(model)


@pytest.mark.parametrize("momentum", [1.0, None])  # which PreciseBN sets, and update_bn
def test_estimates_of_deep_layers_are_batchnorm_s(momentum):
    """r and d of statistics that are being estimated would distort what the next layer's are estimated of."""
    data, results = [torch.randn(8, 3, 12, 12) * 9 + 9 for _ in range(3)], ([], [])
    for model, found in zip((network(), network(nn.BatchNorm2d, eps=1e-3)), results, strict=True):
        for layer in (model[1], model[4]):
            layer.reset_running_stats()
            layer.momentum = momentum
        for x in data:
            model(x)
            found.append(statistics_of(model))
    torch.testing.assert_close(*results, rtol=1e-2, atol=1e-4)  # batchnorm has n - 1 in the variance


@pytest.mark.parametrize("kind", ["sigma", "variance"])
@pytest.mark.parametrize("deferred", [False, True])
def test_momentum_none_is_the_plain_mean_over_steps(kind, deferred):
    layer = BatchRenorm1d(3, momentum=None, averages=kind)
    statistics = StepStatistics(layer) if deferred else None
    data = [torch.randn(64, 3) * (k + 1) + 5 for k in range(10)]
    for x in data:
        layer(x)
        if statistics is not None:
            statistics.update()
    torch.testing.assert_close(layer.mu, torch.stack(data).mean((0, 1)))
    var = torch.stack([x.var(0, correction=0) for x in data])
    sigma = (var + 1e-3).sqrt().mean(0) if kind == "sigma" else (var.mean(0) + 1e-3).sqrt()
    torch.testing.assert_close(layer.sigma, sigma)
    assert layer.num_batches_tracked == 10


# ---- tracing, exporting, fusing ------------------------------------------------------------------


def test_a_script_says_what_to_script():
    model, x = network(), torch.randn(4, 3, 12, 12)
    with pytest.raises(RuntimeError, match=r"script to_batchnorm\(copy.deepcopy\(model.eval\(\)\)\).*jit.trace"):
        torch.jit.script(model)
    scripted = torch.jit.script(to_batchnorm(copy.deepcopy(model.eval())))
    torch.testing.assert_close(scripted(x), model(x))


def test_an_export_is_that_of_batchnorm():
    programs = [
        torch.export.export(model, (torch.randn(2, 3, 12, 12),), dynamic_shapes=({0: torch.export.Dim("b")},))
        for model in (network().eval(), network(nn.BatchNorm2d).eval())
    ]
    ours, theirs = ([(node.op, str(node.target)) for node in program.graph.nodes] for program in programs)
    assert ours == theirs


def test_fusing_into_the_convolution():
    from torch.fx.experimental.optimization import fuse
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for options in ({}, {"scale": False}, {"center": False}, {"affine": False}):
        model, x = network(**options).eval(), torch.randn(2, 3, 12, 12)
        torch.testing.assert_close(fuse_conv_bn_eval(model[0], model[1])(x), model[1](model[0](x)))
        fused = fuse(to_batchnorm(copy.deepcopy(model)))
        assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


def test_fx_sees_one_node_that_trains_and_evaluates():
    model, x = network(momentum=0.1, group_size=2), torch.randn(4, 3, 12, 12)
    twin = copy.deepcopy(model)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == list("01234")
    for mode in (True, False):
        torch.testing.assert_close(traced.train(mode)(x), twin.train(mode)(x))
    torch.testing.assert_close(statistics_of(traced), statistics_of(twin))


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.fixture
def layer():
    return filled(BatchRenorm1d(4, rmax=2.0, dmax=0.5, dtype=torch.float64))


def test_torch_func(layer):
    x = torch.randn(8, 4, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        return functional_call(layer, (parameters, buffers), x).tanh().sum()

    found = grad(loss)(parameters, x)
    y = algorithm1(x, layer.mu, layer.sigma, layer.weight, layer.bias, layer.rmax, layer.dmax, layer.eps).y
    expected = torch.autograd.grad(y.tanh().sum(), list(parameters.values()))
    torch.testing.assert_close(list(found.values()), list(expected))
    jacobian = jacfwd(loss, argnums=1)(parameters, x)
    torch.testing.assert_close(jacobian, grad(loss, argnums=1)(parameters, x))
    layer.track_running_stats = False  # vmap has no one batch whose statistics they would be
    torch.testing.assert_close(
        vmap(grad(loss, argnums=1), in_dims=(None, 0))(parameters, torch.stack([x, 2 * x]))[1],
        grad(loss, argnums=1)(parameters, 2 * x),
    )


def test_an_ensemble_by_vmap(layer):
    models = [layer, copy.deepcopy(layer)]
    x = torch.randn(8, 4, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)
    y = vmap(lambda p, b, x: functional_call(models[0], (p, b), x), in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(y[1], models[1](x))
    torch.testing.assert_close(buffers["running_var"][1], models[1].running_var)


@pytest.mark.parametrize("deferred", [False, True])
def test_an_empty_batch_is_an_empty_output_and_moves_nothing(deferred):
    head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), BatchRenorm2d(8, group_size=2), nn.Flatten(), nn.Linear(72, 5))
    statistics = StepStatistics(head) if deferred else None
    before = statistics_of(head)
    y = head(torch.zeros(0, 8, 3, 3))
    y.sum().backward()
    assert y.shape == (0, 5)
    assert head[1].weight.grad.count_nonzero() == 0
    if statistics is not None:
        statistics.update()
    torch.testing.assert_close(statistics_of(head), before, rtol=0, atol=0)
    assert head.eval()(torch.zeros(0, 8, 3, 3)).shape == (0, 5)
