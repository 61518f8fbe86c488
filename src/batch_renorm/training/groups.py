"""Checks that the layers of a network normalise the groups of a minibatch, and nothing else."""

import copy

import torch
from torch import nn

from batch_renorm.errors import UserError
from batch_renorm.norm.layers import BatchRenorm

CHANNELS = 64  # of the layer on which a norm is tried
NO_GROUPS = (
    "normalises an image with whatever else is in its pass, and not with its group (minibatch.group): make it from "
    "BatchRenorm2d(channels, group_size=group_size), which with rmax=1 and dmax=0 is batchnorm"
)


def check_norm(layer: nn.Module, name: str) -> None:
    """Raise UserError if norm=name makes a layer that sees more of a pass than a group."""
    if sees_the_minibatch(layer):
        raise UserError(f"norm={name}: {type(layer).__name__} {NO_GROUPS}")


def sees_the_minibatch(layer: nn.Module) -> bool:
    """Whether a layer's output for an image depends on other images of its pass, or of earlier ones.

    Tries one image with two neighbours, in training and then in evaluation. BatchRenorm layers, which keep to their
    groups, are in evaluation.
    """
    image, *neighbours = torch.randn(3, 2, CHANNELS, 5, 5)
    outputs = []
    for neighbour in neighbours:
        images, tried = torch.cat([image, neighbour]), copy.deepcopy(layer).train()
        for part in tried.modules():
            if isinstance(part, BatchRenorm):
                part.eval()
        with torch.no_grad():
            outputs.append([tried(images)[: len(image)], tried.eval()(images)[: len(image)]])
    return any(not torch.allclose(a, b, atol=1e-5) for a, b in zip(*outputs, strict=True))


def normalises_passes(module: nn.Module) -> bool:
    """Whether a layer is one of torch's whose statistics are those of a whole pass."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.track_running_stats
    batchnorm = isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, BatchRenorm)
    return batchnorm and module.train().training  # a frozen one stays in evaluation mode


def check_norms(model: nn.Module, group: int) -> None:
    """Raise UserError if a layer of the network normalises anything but groups of minibatch.group."""
    for name, module in model.named_modules():
        if normalises_passes(module):
            raise UserError(f"the network's layer {name!r}, {type(module).__name__}, {NO_GROUPS}")
        if isinstance(module, BatchRenorm) and module.group_size != group:
            raise UserError(
                f"the network's layer {name!r} normalises groups of {module.group_size}, and minibatch.group={group}: "
                "make it by the function `norm` that the network is given"
            )
