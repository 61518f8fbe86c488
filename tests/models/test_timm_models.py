"""Networks of timm with our norms in the place of batchnorm, against timm's own."""

import copy
import sys
from functools import partial

import pytest
import timm
import torch
from torch import nn

from batch_renorm.models.norms import group_norm
from batch_renorm.models.timm_models import create, stock, stock_weights
from batch_renorm.norm import BatchRenorm2d
from batch_renorm.norm.layers import layers_of
from batch_renorm.training.optimizer import decayed_parameters

NORM = partial(BatchRenorm2d, eps=1e-3, momentum=0.01, averages="sigma", group_size=2, scale=False, rmax=1.0, dmax=0.0)


def with_statistics(model):
    """Moving averages as after some training."""
    generator = torch.Generator().manual_seed(0)
    for buffer in model.buffers():
        buffer.copy_(buffer.abs() + torch.rand(buffer.shape, generator=generator) + 0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "size", "options", "learned_gamma"),
    [
        ("inception_v3", 299, {"aux_logits": True}, False),
        ("resnet18", 64, {}, True),
        ("mobilenetv3_small_050", 64, {}, True),  # norms with their activation; eps 1e-5
    ],
)
def test_a_network_is_timm_s_with_our_norms_and_goes_back_to_timm(name, size, options, learned_gamma, monkeypatch):
    monkeypatch.setattr(sys.modules["timm.models.inception_v3"], "trunc_normal_", nn.init.normal_)  # seconds faster
    torch.manual_seed(0)
    model = with_statistics(create(name, 7, 3, NORM, learned_gamma=learned_gamma, **options))
    plain = timm.create_model(name, num_classes=7).eval()
    before = copy.deepcopy(model.state_dict())
    plain.load_state_dict(stock_weights(model, name, 7), strict=True)
    images = torch.rand(1, 3, size, size) * 2 - 1
    with torch.no_grad():
        expected, logits = plain(images), model(images)
        logits = logits[0] if "aux_logits" in options else logits
        torch.testing.assert_close(logits, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    with torch.device("meta"):
        whole, published = (timm.create_model(name, num_classes=classes, **options) for classes in (7, 1000))
    norms = [m for m in whole.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers_of(model)) == len(norms)
    assert count(model) == count(whole) - (0 if learned_gamma else sum(norm.num_features for norm in norms))
    if name == "inception_v3":
        assert count(published) == 27_161_264  # as torchvision says of the network with its auxiliary head
    decayed, others = decayed_parameters(model)
    assert all(parameter.ndim >= 2 for parameter in decayed)
    assert all(parameter.ndim == 1 for parameter in others)
    assert len(decayed) + len(others) == len(list(model.parameters()))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("name", "learned"), [("resnet10t", True), ("mobilenetv3_small_050", False)])
def test_groupnorm_in_the_place_of_every_batchnorm_keeps_activations_and_starting_gammas(name, learned):
    model = create(name, 7, 3, partial(group_norm, channels_per_group=16, eps=1e-3), learned_gamma=learned)
    plain = timm.create_model(name, num_classes=7)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    before = [m for m in plain.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [norm.num_channels for norm in norms] == [m.num_features for m in before]
    assert all((norm.weight is None) == (not learned) for norm in norms)
    if learned:  # a ResNet starts some at 0
        assert [norm.weight.detach().abs().sum().item() for norm in norms] == [m.weight.sum().item() for m in before]

    def activations(network):
        return [type(m) for m in network.modules() if isinstance(m, nn.ReLU | nn.Hardswish)]

    assert activations(model) == activations(plain)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options", "answer"),
    [
        ("resnet5O", {}, r"timm has no model 'resnet5O'; did you mean .*resnet50"),
        ("resnet18", {"drop_ratio": 0.1}, r"timm's resnet18 has no option 'drop_ratio'"),
        ("vit_tiny_patch16_224", {}, "has no batchnorm that Batch Renorm could take the place of"),
        ("resnet18", {"learned_gamma": False}, "starts some gammas at .* than 1: say model.learned_gamma=true"),
    ],
)
def test_what_cannot_be_made_is_named(name, options, answer):
    with pytest.raises(ValueError, match=answer):
        create(name, 5, 3, NORM, **({"learned_gamma": True} | options))


def test_weights_that_do_not_arrive_are_named(tmp_path, monkeypatch):
    def offline(name, **options):
        raise OSError("the network is unreachable\nand more")

    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"cannot load resnet18 from .*empty.pth: "):
        stock("resnet18", checkpoint_path=str(tmp_path / "empty.pth"))
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"timm's weights, .*: the network is unreachable and more$"):
        stock("resnet18", pretrained=True)
