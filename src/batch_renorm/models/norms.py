"""Factories of norms that see no group: controls for batchnorm and Batch Renorm.

Your own norm is such a function too: configs/norm names it by `_target_`, see docs/experiments.md.
"""

from pydantic import PositiveFloat, PositiveInt
from torch import nn


def group_norm(channels: int, channels_per_group: PositiveInt, eps: PositiveFloat, scale: bool = False) -> nn.GroupNorm:
    """torch's GroupNorm (Wu and He, 2018) over the channels of each image alone: (n, channels, ...) to the same.

    A group has `channels_per_group` channels or the next larger number that divides the channels, at most all.
    Wu and He's other setting, 32 groups, does not divide the 48 and 80 channels of Inception-v3; their 16 channels per
    group divide every layer of it.

    Args:
        channels_per_group: the fewest channels of a group.
        scale: learn gamma; the paper's networks have gamma = 1 throughout. beta is always learned.
    """
    size = next((size for size in range(channels_per_group, channels) if channels % size == 0), channels)
    layer = nn.GroupNorm(channels // size, channels, eps)
    if not scale:
        layer.register_parameter("weight", None)
    return layer
