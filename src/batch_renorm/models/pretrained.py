"""Images prepared as a timm model's configuration says, for evaluating timm's pretrained weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class PretrainedImages:
    """A source for evaluation: resized, cropped and normalised by the model's `pretrained_cfg`.

    Args:
        pictures: a data set of images at their own sizes, with `classes`, `labels(split)` and `image(split, index)`.
    """

    channels = 3
    needs_loader_processes = True
    skips_unreadable = False
    remarks: Sequence[str] = ()

    def __init__(self, pictures: Any, model: nn.Module) -> None:
        from timm.data import create_transform, resolve_model_data_config

        config = resolve_model_data_config(model, use_test_size=True)
        self.pictures, self.classes, self.size = pictures, pictures.classes, config["input_size"][-1]
        self.transform: Any = create_transform(**config, is_training=False)

    @property
    def image_bytes(self) -> int:
        return 4 * 3 * self.size**2

    def labels(self, split: str) -> np.ndarray:
        return self.pictures.labels(split)

    def fetch(self, split: str, indices: np.ndarray, draw: object = None) -> Tensor:
        """(n, 3, height, width) float32."""
        images = [Image.fromarray(self.pictures.image(split, int(index))) for index in indices]
        return torch.stack([self.transform(image) for image in images])

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        return torch.cat(fetched).to(device)
