"""A small network in Inception's style for the embedded data set, or wider for photographs: convolutions with norms.

It concatenates parallel branches of 1 x 1 and 3 x 3 convolutions and pooling, as in Inception-v3. Then follow a
convolution that covers the positions that are left, 2 x 2 of an image of 16 pixels, or the mean over them, and 1 x 1
convolutions. So the last norms see few values, of features that are specific to labels.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
Count = Annotated[int, Field(ge=1, le=100_000)]


class Product(nn.Conv2d):
    """A convolution computed as a matrix product, two to three times as fast as a convolution on CPU.

    This applies to unpadded kernels that are 1 x 1 or cover the image; others use nn.Conv2d.
    In channels_last nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        window = self.weight.shape[2:]
        if window != (1, 1) and window != x.shape[2:]:
            return super().forward(x)
        x, weight = (t.permute(0, 2, 3, 1) for t in (x, self.weight))
        if window != (1, 1):
            x = x.flatten(1)[:, None, None]
        return F.linear(x, weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def convolution(
    inputs: int, outputs: int, kernel: int, norm: Norm, stride: int = 1, padded: bool = True
) -> nn.Sequential:
    """Convolution without bias, norm, ReLU."""
    if padded and kernel > 1:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    else:
        layer = Product(inputs, outputs, kernel, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(layer, norm(outputs), nn.ReLU(inplace=True))


class InceptionBlock(nn.Module):
    """Branches 1x1, 1x1 -> 3x3 and pool -> 1x1, concatenated over channels.

    The three 1x1 convolutions are one product, and their norms one norm, which takes a third of the calls and computes
    the same: pooling is an average over positions and a 1x1 convolution one over channels, so their order is free.
    """

    def __init__(self, inputs: int, single: int, reduced: int, wide: int, pooled: int, norm: Norm) -> None:
        super().__init__()
        # Weights are drawn as for separate branches, so that a seed begins as in the recorded runs.
        parts = [convolution(inputs, single, 1, norm), convolution(inputs, reduced, 1, norm)]
        self.wide = convolution(reduced, wide, 3, norm)
        parts.append(convolution(inputs, pooled, 1, norm))
        self.channels = [single, reduced, pooled]
        self.outputs = single + wide + pooled
        self.product = nn.utils.skip_init(Product, inputs, sum(self.channels), 1, bias=False)
        self.product.weight = nn.Parameter(torch.cat([next(part.parameters()).detach() for part in parts]))
        self.norm, self.relu = norm(sum(self.channels)), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        single, reduced, pooled = self.product(x).split(self.channels, 1)
        x = torch.cat([single, reduced, F.avg_pool2d(pooled, 3, 1, 1)], 1)
        single, reduced, pooled = self.relu(self.norm(x)).split(self.channels, 1)
        return torch.cat([single, self.wide(reduced), pooled], 1)


class GlyphInception(nn.Module):
    """Images (n, channels, size, size) to logits (n, classes).

    Args:
        norm: makes the norm layer of a given number of channels.
        head: channels of the convolutions before the classifier.
        head_kernel: height and width of the first of them, which is not padded.
        head_layers: how many 1 x 1 convolutions follow it.
        width: multiplies the channels before the head.
        pooled: take the mean over positions before the head, for images of objects anywhere; head_kernel is then 1.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        norm: Norm,
        head: Count,
        head_kernel: Count,
        head_layers: Annotated[int, Field(ge=0, le=1000)],
        width: Count = 1,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            convolution(channels, 16 * width, 3, norm, stride=2),
            convolution(16 * width, 24 * width, 3, norm),
            nn.MaxPool2d(2, ceil_mode=True),
        )
        first = InceptionBlock(24 * width, 16 * width, 16 * width, 24 * width, 16 * width, norm)
        second = InceptionBlock(first.outputs, 32 * width, 24 * width, 48 * width, 24 * width, norm)
        self.pooled = pooled
        self.blocks = nn.Sequential(first, nn.MaxPool2d(2, ceil_mode=True), second)
        self.head = nn.Sequential(
            convolution(second.outputs, head, head_kernel, norm, padded=False),
            *[convolution(head, head, 1, norm) for _ in range(head_layers)],
        )
        self.classifier = nn.Linear(head, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        if self.pooled:
            x = x.mean((2, 3), keepdim=True)
        return self.classifier(self.head(x).mean((2, 3)))
