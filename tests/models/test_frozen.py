"""Fine-tuning: weights from a file, blocks that stay as they are, batchnorm with frozen statistics."""

from collections import OrderedDict
from functools import partial

import pytest
import timm
import torch
from torch import nn

from batch_renorm.models.timm_models import create, stock_weights
from batch_renorm.norm import BatchRenorm2d, StepStatistics
from batch_renorm.norm.layers import has_layers, layers_of
from batch_renorm.running.build import norm_factory
from batch_renorm.running.schema import read
from batch_renorm.training.groups import check_norms

NAME = "test_efficientnet"  # timm's network for tests: a stem, 4 blocks, 64 pixels in a millisecond
RENORM = partial(BatchRenorm2d, eps=1e-3, momentum=0.5, averages="sigma", group_size=2, scale=False, rmax=3.0, dmax=5.0)


@pytest.fixture(scope="module")
def stock():
    """timm's network with weights, gammas and averages as after some training."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=9)
    for tensor in [*model.buffers(), *(p for p in model.parameters() if p.ndim == 1)]:
        if tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand_like(tensor)
    return model.eval()


@pytest.fixture
def file(stock, tmp_path):
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def trained(model, steps=2):
    """The tensors of a model before and after some steps."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    statistics = StepStatistics(model) if has_layers(model) else None
    for _ in range(steps):
        model.train()
        (model(torch.randn(4, 3, 64, 64)) - torch.arange(5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if statistics is not None:
            statistics.update()
    return before, model.state_dict()


def test_frozen_blocks_stay_as_they_are_and_the_others_train(file):
    before, after = trained(create(NAME, 5, 3, RENORM, learned_gamma=True, checkpoint=file, frozen=3))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    first = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    assert not any(name.startswith(first) for name in moved)
    stayed = {name for name in before.keys() - moved if not name.startswith(first)}
    assert all(name.endswith(".bias") for name in stayed)  # a beta before another norm has no effect


@pytest.mark.parametrize("frozen", [0, 3])
def test_a_frozen_part_makes_no_other_network(stock, file, frozen):
    """It computes what timm's own does, and goes back to it."""
    model = create(NAME, 9, 3, RENORM, learned_gamma=True, checkpoint=file, frozen=frozen).eval()
    model.get_classifier().load_state_dict(stock.get_classifier().state_dict())
    images = torch.randn(2, 3, 64, 64)
    plain = timm.create_model(NAME, num_classes=9).eval()
    plain.load_state_dict(stock_weights(model, NAME, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(images), stock(images))
        torch.testing.assert_close(plain(images), stock(images))
    assert len(layers_of(model)) == sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules()) - 4 * (frozen == 3)


def test_frozen_statistics_are_those_of_the_file_while_gamma_and_beta_learn(stock, file, compose):
    config = compose("experiment=noniid_frozen")
    frozen = norm_factory(config, read(config))
    model = create(NAME, 5, 3, frozen, learned_gamma=True, checkpoint=file)
    check_norms(model, group=16)
    images = torch.randn(4, 3, 64, 64)
    model.train()
    torch.testing.assert_close(model(images)[:1], model(images[:1]))  # an image's answer is the same in any minibatch
    before, after = trained(model)
    averages = [name for name in before if "running" in name or "num_batches" in name]
    assert all(torch.equal(after[name], stock.state_dict()[name]) for name in averages)
    learned = [name for name in before if name.endswith(("bn1.weight", "bn1.bias"))]
    assert not any(torch.equal(before[name], after[name]) for name in learned)


def test_weights_with_other_names_in_the_same_order_fit(stock, file, tmp_path):
    others = OrderedDict((f"_layer{k}", value) for k, value in enumerate(stock.state_dict().values()))
    torch.save(others, tmp_path / "others.pth")
    networks = []
    for weights in (file, str(tmp_path / "others.pth")):
        torch.manual_seed(1)
        networks.append(create(NAME, 5, 3, RENORM, learned_gamma=True, checkpoint=weights).state_dict())
    torch.testing.assert_close(*networks, rtol=0, atol=0)
    named = networks[0]
    assert torch.equal(named["bn1.running_mean"], stock.state_dict()["bn1.running_mean"])
    assert not named["classifier.weight"].any()  # the new classifier starts at 0


def test_weights_that_do_not_fit_are_named_in_one_line(stock, tmp_path):
    weights = dict(stock.state_dict())
    torch.save(weights | {"conv_stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "wrong.pth")
    torch.save({key: value for key, value in weights.items() if key != "bn1.bias"}, tmp_path / "lacking.pth")
    (tmp_path / "none.pth").write_bytes(b"no weights")
    for name, message in (
        ("wrong", "does not fit the network: Error(s) in loading state_dict for EfficientNet: size mismatch for conv_"),
        ("lacking", "does not fit the network: Error(s) in loading state_dict for EfficientNet: Missing key(s)"),
        ("none", "cannot load weights from model.checkpoint="),
    ):
        with pytest.raises(ValueError, match=rf"model\.checkpoint=.*{name}\.pth") as error:
            create(NAME, 5, 3, RENORM, learned_gamma=True, checkpoint=str(tmp_path / f"{name}.pth"))
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"model\.frozen=7: the network has 6 blocks"):
        create(NAME, 5, 3, RENORM, learned_gamma=True, frozen=7)
