"""The GPU's kernels that make images ready, against the plain operations; in Triton's interpreter where no GPU is."""

import pytest
import torch

pytest.importorskip("triton")

from batch_renorm.data import colour_kernels, images

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(6, 3, 40, 53), (2, 3, 1, 1), (1, 3, 32, 32), (0, 3, 8, 8)])
def test_kernels_do_what_plain_operations_do(shape, monkeypatch):
    """Both orders, greys, colours at the ends of the range, and numbers of pixels that no block divides."""
    monkeypatch.setattr(colour_kernels, "BLOCK", 256)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    if len(pixels) > 1:
        pixels[0, :, ::2] = 77
        pixels[1] = torch.where(pixels[1] < 128, 0, 255)
    colours = torch.rand(len(pixels), 5, generator=generator)
    colours[: len(pixels) // 2, 0] = 0.2
    colours[len(pixels) // 2 :, 0] = 0.7
    for draws in (colours, None):
        expected = images.ready(pixels, draws)
        got = colour_kernels.ready(pixels.to(DEVICE), draws if draws is None else draws.to(DEVICE)).cpu()
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
        if draws is not None and shape[2] > 8:
            assert (got - images.ready(pixels, None)).abs().max() > 0.1
