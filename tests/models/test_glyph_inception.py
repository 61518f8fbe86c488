"""Networks of our own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from batch_renorm.models.glyph_inception import InceptionBlock, Product


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "size"), [(1, 1), (1, 5), (3, 3), (3, 5)])
def test_a_convolution_as_a_matrix_product_is_the_convolution(kernel, size, layout):
    layer = Product(8, 6, kernel).double().to(memory_format=layout)
    x = torch.randn(4, 8, size, size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    y, expected = layer(x), nn.Conv2d.forward(layer, x)
    g = torch.randn_like(expected)
    leaves = [x, layer.weight, layer.bias]
    found, wanted = (torch.autograd.grad(out, leaves, g) for out in (y, expected))
    torch.testing.assert_close([y, *found], [expected, *wanted])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_block_s_product_is_inception_s_branches(layout):
    """Inception's order: a branch pools its input and then convolves it, and each convolution has a norm of its own."""
    torch.manual_seed(0)
    block = InceptionBlock(5, 4, 3, 6, 2, nn.BatchNorm2d).double().to(memory_format=layout)
    x = torch.randn(8, 5, 6, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()

    def branch(x, weight):
        return F.batch_norm(F.conv2d(x, weight, padding=weight.shape[2] // 2), None, None, training=True).relu()

    single, reduced, pooled = block.product.weight.split([4, 3, 2])
    wide = branch(branch(x, reduced), block.wide[0].weight)
    expected = torch.cat([branch(x, single), wide, branch(F.avg_pool2d(x, 3, 1, 1), pooled)], 1)
    y, g = block(x), torch.randn_like(expected)
    torch.testing.assert_close(y, expected)
    leaves = [x, block.product.weight, block.wide[0].weight]
    torch.testing.assert_close(*(torch.autograd.grad(out, leaves, g) for out in (y, expected)))
