"""Depthwise convolutions computed as matrix products on a CPU, where an image has few positions."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 16
"""Most positions of an image for which products are used; there oneDNN's gradient takes four times as long or more."""


class Depthwise(nn.Conv2d):
    """nn.Conv2d where each channel is convolved alone: one matrix of input to output positions for every channel."""

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        if not x.is_cpu or height * width > FEW:
            return super().forward(x)
        shifts = shifted(height, width, self.kernel_size, self.stride, self.padding)
        matrices = (self.weight.flatten(1) @ shifts.flatten(1).to(x.dtype)).view(channels, height * width, -1)
        y = torch.bmm(x.permute(1, 0, 2, 3).reshape(channels, n, height * width), matrices)
        if y.requires_grad:
            y.register_hook(Tensor.contiguous)  # bmm would copy matrix by matrix
        return y.permute(1, 2, 0).reshape(n, *shifts.shape[2:], channels).permute(0, 3, 1, 2)


@lru_cache
def shifted(
    height: int, width: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Where each weight of a kernel takes each position of an image: (weights, positions, height, width), 0 or 1."""
    kernels, images = torch.eye(kernel[0] * kernel[1]), torch.eye(height * width)
    moved = F.conv2d(images.view(-1, 1, height, width), kernels.view(-1, 1, *kernel), None, stride, padding)
    return moved.transpose(0, 1)


def faster_on_cpu(model: nn.Module) -> nn.Module:
    """Make every plain depthwise convolution of a model a `Depthwise`, in place; names and weights stay."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.bias is None and module.padding_mode == "zeros"
        if plain and module.groups == module.in_channels == module.out_channels > 1 and module.dilation == (1, 1):
            module.__class__ = Depthwise
    return model
