"""Batchnorm to Batch Renormalization and back, on stock models with random weights."""

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, SplitBatchNorm2d
from torch import nn
from torch.nn.utils import prune

from batch_renorm.norm import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    Ramp,
    convert_batchnorm,
    set_limits,
    to_batchnorm,
)
from batch_renorm.norm.layers import BatchRenormNd


def norms_of(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def randomised(model, gamma=True):
    """Running statistics and parameters of batchnorm away from 0 and 1."""
    for module in norms_of(model):
        module.running_mean.normal_(0, 0.1)
        module.running_var.uniform_(0.5, 2)
        if module.affine:
            nn.init.uniform_(module.weight, 0.5 if gamma else 1.0, 1.5 if gamma else 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize("scale", [True, False])  # the paper's models have no gamma; that of the stock model is then 1
@pytest.mark.parametrize(
    "make",
    [
        partial(torchvision.models.resnet18, num_classes=5),
        partial(timm.create_model, "efficientnet_b0", num_classes=5),  # BatchNormAct2d
    ],
)
def test_a_stock_model_there_and_back(make, scale):
    torch.manual_seed(0)
    stock, x = randomised(make(), gamma=scale), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = stock(x)
        names, norms = list(stock.state_dict()), len(norms_of(stock))
        model = convert_batchnorm(stock, group_size=1, scale=scale)
        assert model is stock is convert_batchnorm(model)  # those that are ours already stay
        assert [isinstance(m, BatchRenorm) for m in norms_of(model)] == [True] * norms
        assert all((m.weight is None) == (not scale) for m in norms_of(model))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        # Training moves mu and sigma; then the folded model is another, but the same function.
        set_limits(model, 1.5, 0.5)
        model.train()(x)
        expected = model.eval()(x)
        folded, twin = to_batchnorm(model), make().eval()
        assert list(folded.state_dict()) == names
        twin.load_state_dict(folded.state_dict(), strict=True)
        for found in (folded, twin):
            torch.testing.assert_close(found(x), expected, rtol=1e-4, atol=1e-5)
    assert [type(m) for m in folded.modules()] == [type(m) for m in twin.modules()]


def test_norm_and_activation_keep_their_order_and_training_works():
    norm = BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=nn.Dropout)
    model = convert_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), norm), group_size=2)
    layer = model[1]
    assert isinstance(layer.act, nn.SiLU)
    assert isinstance(layer.drop, nn.Dropout)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    model.eval()
    plain = BatchRenorm.forward(layer, model[0](x))
    torch.testing.assert_close(model(x), nn.functional.silu(plain))
    twin = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(copy.deepcopy(twin)(x), model(x))
    assert type(to_batchnorm(twin)[1]) is BatchNormAct2d


@pytest.mark.parametrize(
    ("kind", "converted", "shape"),
    [
        (nn.BatchNorm1d, BatchRenorm1d, (4, 3)),
        (nn.BatchNorm2d, BatchRenorm2d, (4, 3, 2, 2)),
        (nn.BatchNorm3d, BatchRenorm3d, (4, 3, 2, 2, 2)),
        (nn.SyncBatchNorm, BatchRenormNd, (4, 3, 2)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_itself(kind, converted, shape, affine):
    norm = randomised(kind(3, eps=1e-4, affine=affine))
    x = torch.randn(shape)
    expected = norm(x)
    layer = convert_batchnorm(norm)
    assert type(layer) is converted
    assert layer.eps == 1e-4
    assert layer.momentum == 0.01
    assert not layer.training
    assert layer.weight is norm.weight
    torch.testing.assert_close(layer(x), expected)
    back = to_batchnorm(layer)
    assert type(back) is kind
    torch.testing.assert_close(back(x), expected)
    torch.testing.assert_close(back.running_var, norm.running_var)
    assert back.state_dict().keys() == norm.state_dict().keys()


def test_a_shared_layer_stays_shared():
    norm = nn.BatchNorm1d(3)
    model = convert_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
    assert isinstance(model[0], BatchRenorm1d)
    assert model[0] is model[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_is_kept(dtype):
    """Averages of half precision become float32, and batchnorm on a CPU does not take those with half parameters."""
    layer, x = convert_batchnorm(nn.BatchNorm2d(3).to(dtype)).eval(), (torch.randn(4, 3, 5, 5) * 3 + 1).to(dtype)
    assert layer.weight.dtype == dtype
    assert layer.sigma.dtype == torch.promote_types(dtype, torch.float32)
    folded = to_batchnorm(layer)
    assert torch.equal(folded(x), layer(x))
    assert folded(x).dtype == dtype
    assert folded.half()(x.half()).dtype == torch.float16


def test_batchnorm_without_a_bias_is_one_again():
    stock = nn.Sequential(nn.BatchNorm2d(3))
    stock[0].register_parameter("bias", None)  # BatchNorm2d(3, bias=False), unknown to torch 2.11
    model = convert_batchnorm(copy.deepcopy(stock))
    assert [name for name, _ in model.named_parameters()] == ["0.weight"]
    folded = to_batchnorm(model)
    assert folded.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(folded.state_dict())
    assert "bias" in to_batchnorm(BatchRenorm2d(3, center=False)).state_dict()  # the paper's switch: a beta of 0


def test_a_gamma_that_is_computed_is_folded_as_it_is():
    layer, x = BatchRenorm2d(6).eval(), torch.randn(4, 6, 5, 5)
    torch.nn.init.uniform_(layer.weight)
    prune.l1_unstructured(layer, "weight", 3)
    assert torch.equal(to_batchnorm(layer)(x), layer(x))


def test_a_lazy_batchnorm_that_has_seen_an_image_and_one_without_values():
    model, x = nn.Sequential(nn.LazyBatchNorm2d()), torch.randn(4, 3, 5, 5) * 2 + 1
    model(x)
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(convert_batchnorm(model).eval()(x), expected)
    assert to_batchnorm(convert_batchnorm(model.to("meta")))[0].running_var.is_meta


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class Named(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-2)


def test_a_scripted_model_is_refused():
    with pytest.raises(TypeError, match="scripted or traced: convert it before that"):
        convert_batchnorm(torch.jit.script(nn.Sequential(nn.BatchNorm2d(3))))


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda n: nn.init.zeros_(n.weight), {"scale": False}, ValueError, "'1'.*scale=False.*gamma"),
        (lambda n: nn.init.ones_(n.bias), {"center": False}, ValueError, "'1'.*center=False.*beta"),
        (lambda n: nn.init.ones_(n.bias), {"affine": False}, ValueError, "'1'.*beta"),
        (lambda n: Odd(3), {}, TypeError, "'1'.*Odd"),
        (lambda n: nn.BatchNorm2d(3, track_running_stats=False), {}, ValueError, "'1'.*running"),
        (lambda n: nn.LazyBatchNorm2d(), {}, ValueError, "'1'.*not initialised"),
        (lambda n: n.running_var.fill_(1e-4), {"eps": 1e-2}, ValueError, "'1'.*eps=0.01.*would change"),
        (lambda n: prune.l1_unstructured(n, "weight", 1), {}, TypeError, "'1'.*weight.*pruned"),
        (lambda n: SplitBatchNorm2d(3), {}, TypeError, "'1'.*SplitBatchNorm2d.*aux_bn"),
        (lambda n: None, {"group_size": 3.5}, ValueError, "group_size must be a whole number from 1, got 3.5"),
        (lambda n: None, {"ramp": (0, 1, 1)}, TypeError, "ramp.*Ramp"),
        (lambda n: None, {"ramp": Ramp(0, 1, 1), "rmax": 2.0}, ValueError, r"Ramp\(..., rmax=2.0"),
    ],
)
def test_what_cannot_be_carried_over_is_named_and_nothing_changes(change, options, error, message):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    new = change(model[1])
    if isinstance(new, nn.Module):
        model[1] = new
    before = list(model)
    with pytest.raises(error, match=message):
        convert_batchnorm(model, **options)
    assert list(model) == before


def test_a_subclass_without_a_forward_of_its_own_is_plain():
    layer = convert_batchnorm(Named(3))
    assert type(layer) is BatchRenorm2d
    folded = to_batchnorm(layer)
    assert type(folded) is Named
    assert (folded.eps, folded.num_features) == (1e-2, 3)
