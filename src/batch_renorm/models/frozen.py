"""Batchnorm whose mu and sigma stay as they are, in training too: the usual remedy when minibatches are small."""

from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that always normalises with its running averages; gamma and beta learn as elsewhere.

    As a norm of its own (configs/norm/frozen.yaml) it is for pretrained networks: a new one has mean 0, variance 1.
    """

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


class FrozenBatchNormAct2d(BatchNormAct2d):
    """The same for timm's batchnorm with its activation."""

    def train(self, mode: bool = True) -> "FrozenBatchNormAct2d":
        return super().train(False)


def frozen_norm(norm: _BatchNorm) -> _BatchNorm:
    """The batchnorm itself, frozen."""
    norm.__class__ = FrozenBatchNormAct2d if isinstance(norm, BatchNormAct2d) else FrozenBatchNorm2d
    return norm.eval()
