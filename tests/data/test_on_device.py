"""Decoding on the device that trains. Here it is a CPU, in the GPU's place, with the same library."""

import numpy as np
import pytest
import torch
from PIL import Image

from batch_renorm.data import on_device, regions
from batch_renorm.data.decoding import UnreadableImage, decode
from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Draw
from tests.data.imagenet_files import encoded

CPU = torch.device("cpu")
needs_codec = pytest.mark.skipif(regions.codec() is None, reason="nvImageCodec is not installed")


@needs_codec
def test_the_device_may_decode(folders):
    """The same crops; the pixels differ as far as decoders and rounding do."""
    near, far = Images(str(folders), 32), Images(str(folders), 32, decode="device")
    draw = Draw(0, 1, 2, minibatch=6)
    images = [source.images([source.fetch("train", np.arange(12), draw)], CPU) for source in (near, far)]
    assert (images[0] - images[1]).abs().mean() < 0.02  # of 2
    images = [source.images([source.fetch("val", np.arange(8), None)], CPU) for source in (near, far)]
    assert torch.equal(*images)


@needs_codec
def test_a_device_decodes_without_turning_and_names_what_it_cannot():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    kinds = ({"exif": exif}, {"mode": "L"}, {"progressive": True})
    files = [np.frombuffer(encoded(3, **options), np.uint8) for options in kinds]
    got = on_device.decode_jpegs(files, CPU)
    for data, image in zip(files, got, strict=True):
        np.testing.assert_array_equal(image.numpy(), decode(data.tobytes()), strict=True)
    assert on_device.decode_jpegs([], CPU) == []
    with pytest.raises(UnreadableImage, match=r"(?i)truncated"):
        on_device.decode_jpegs([files[0], files[0][: len(files[0]) // 2]], CPU)


@needs_codec
def test_a_device_without_a_decoder_says_so(monkeypatch):
    class Blind:
        def decode(self, image, params):
            return None

    on_device.decoder.cache_clear()
    monkeypatch.setattr(regions.codec(), "Decoder", lambda **options: Blind())
    with pytest.raises(ValueError, match=r"decodes no JPEG on cpu: pip install 'nvidia-nvimgcodec-cu13\[nvjpeg\]'"):
        on_device.decoder(CPU)


def test_without_the_library_it_is_refused(monkeypatch, folders):
    monkeypatch.setattr(regions, "codec", lambda: None)
    with pytest.raises(ValueError, match=r"data.decode=device needs nvImageCodec: pip install 'nvidia-nvimgcodec"):
        Images(str(folders), 32, decode="device")
