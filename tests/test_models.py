"""Networks of our own."""

import pytest
import torch
from torch import nn

from batch_renorm.models.glyph_inception import Product


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "size"), [(1, 1), (1, 5), (3, 3), (3, 5)])
def test_a_convolution_as_a_matrix_product_is_the_convolution(kernel, size, layout):
    layer = Product(8, 6, kernel).double().to(memory_format=layout)
    x = torch.randn(4, 8, size, size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, expected = layer(x), nn.Conv2d.forward(layer, x)
    g = torch.randn_like(expected)
    leaves = [x, layer.weight, layer.bias]
    found, wanted = (torch.autograd.grad(out, leaves, g) for out in (y, expected))
    for a, b in zip([y, *found], [expected, *wanted], strict=True):
        torch.testing.assert_close(a, b)
