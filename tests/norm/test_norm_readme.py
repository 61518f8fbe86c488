"""The recipes of the norm README run, and do what they say."""

import copy
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import batch_renorm.norm
from batch_renorm.norm import layers_of

PAGE = Path(batch_renorm.norm.__file__).with_name("README.md").read_text(encoding="utf-8")

RECIPES = {}  # of every heading, the code under it
for section in re.split(r"^#+ ", PAGE, flags=re.MULTILINE)[1:]:
    if code := re.search(r"```python\n(.*?)```", section, re.DOTALL):
        RECIPES[section.splitlines()[0]] = code[1]


def network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    return batch_renorm.norm.convert_batchnorm(model, momentum=0.1)


def scope():
    torch.manual_seed(0)
    loader = [(torch.randn(8, 3, 12, 12) + 1, torch.randint(5, (8,))) for _ in range(3)]
    names = {name: getattr(batch_renorm.norm, name) for name in batch_renorm.norm.__all__}
    replay = [(torch.randn(16, 8) + 5, torch.randn(16, 1)) for _ in range(3)]
    return names | {
        "torch": torch, "timm": timm, "copy": copy, "model": network(), "loader": loader, "images": loader[0][0],
        "replay": replay,
    }  # fmt: skip


def moved(before, model):
    return any(not torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def trained(norm):
    return norm.num_batches_tracked == 3 and norm.running_mean.abs().sum() > 0


def same(s, other, size=5):
    x = torch.randn(size, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(other(x), s["model"].eval()(x), rtol=1e-4, atol=1e-4)
    return True


CHECKS = {
    "Batch Renormalization, the layer": lambda s: len(layers_of(s["model"])) == 53,
    "Fine-tune with batches of 2": lambda s: type(s["model"].bn1) is nn.BatchNorm2d and trained(s["model"].bn1),
    "Train from scratch": lambda s: s["model"][1].rmax == 3 and trained(s["model"][1]),
    "Several groups, passes or devices a step": lambda s: trained(s["model"][1]),
    "Freeze": lambda s: not moved([b.clone() for b in s["model"].buffers()], (s["model"](s["images"]), s["model"])[1]),
    "Average weights": lambda s: torch.allclose(
        s["averaged"].module[1].mu,
        torch.stack([s["model"][0](x).mean((0, 2, 3)) for x, _ in s["loader"]]).mean(0), atol=1e-5,
    ),
    "Export": lambda s: same(s, s["program"].module()) and same(s, s["traced"]),
    "Quantise": lambda s: (s["quantised"](s["images"]) - s["model"](s["images"])).abs().mean() < 0.05,
    "Reinforcement learning": lambda s: s["target"][1].running_mean.abs().sum() > 0 and s["critic"][1].rmax == 1,
    "Activation checkpointing": lambda s: trained(s["model"][1]),
    "Look at training and inference apart": lambda s: not torch.allclose(s["as_batchnorm"], s["model"](s["images"])),
}  # fmt: skip


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")  # a trace that takes batches of one size alone
@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes(name, monkeypatch):
    stock = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained, **options: stock(*a, **options))  # no download
    s = scope()
    exec(compile(RECIPES[name], f"README.md, {name}", "exec"), s)
    assert CHECKS[name](s)
