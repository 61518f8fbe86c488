"""Networks of timm by name, with the experiment's norm in every place of batchnorm."""

from functools import partial
from typing import Any

from torch import nn

from batch_renorm.norm import BatchRenorm2d, convert_batchnorm


def create(name: str, classes: int, channels: int, norm: partial[BatchRenorm2d], **options: Any) -> nn.Module:
    """timm's model `name`, untrained, each BatchNorm replaced by a layer with `norm`'s settings.

    Args:
        norm: makes the norm of a given number of channels; its settings are what counts.
        options: passed to `timm.create_model` (aux_logits=True for Inception-v3's auxiliary head).
    """
    import timm

    model = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
    return convert_batchnorm(model, **norm.keywords)
