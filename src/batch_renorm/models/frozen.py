"""Batchnorm whose mu and sigma stay as they are, in training too: the usual remedy when minibatches are small."""

from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Frozen:
    """A module that is always in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)  # type: ignore[misc]


class FrozenBatchNorm2d(Frozen, nn.BatchNorm2d):
    """nn.BatchNorm2d that normalises with its running averages; gamma and beta learn as elsewhere.

    As a norm of its own (configs/norm/frozen.yaml) it is for pretrained networks: a new one has mean 0, variance 1.
    """


class FrozenBatchNormAct2d(Frozen, BatchNormAct2d):
    """The same for timm's batchnorm with its activation."""


def frozen_norm(norm: _BatchNorm) -> _BatchNorm:
    """The batchnorm itself, frozen."""
    norm.__class__ = FrozenBatchNormAct2d if isinstance(norm, BatchNormAct2d) else FrozenBatchNorm2d
    return norm.eval()
