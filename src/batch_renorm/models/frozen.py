"""Batchnorm whose mu and sigma stay as they are, in training too: the usual remedy when minibatches are small."""

from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Frozen:
    """A module that is in evaluation mode, whoever calls train()."""

    @property
    def training(self) -> bool:
        return False

    @training.setter
    def training(self, value: bool) -> None:
        pass


class FrozenBatchNorm2d(Frozen, nn.BatchNorm2d):
    """nn.BatchNorm2d that always normalises with its running averages; gamma and beta learn as elsewhere."""


class FrozenBatchNormAct2d(Frozen, BatchNormAct2d):
    """The same for timm's batchnorm with its activation."""


def frozen_norm(norm: _BatchNorm) -> _BatchNorm:
    """The batchnorm itself, frozen."""
    norm.__class__ = FrozenBatchNormAct2d if isinstance(norm, BatchNormAct2d) else FrozenBatchNorm2d
    return norm


def frozen_batchnorm(channels: int) -> _BatchNorm:
    """A new layer, which passes its input on: configs/norm/frozen.yaml is for pretrained networks."""
    return frozen_norm(nn.BatchNorm2d(channels))
