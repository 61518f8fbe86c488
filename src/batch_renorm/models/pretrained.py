"""Images prepared as a timm model's configuration says, for evaluating timm's pretrained weights."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from batch_renorm.data.images import Images
from batch_renorm.data.loaders import Draw, Source


class PretrainedImages(Source):
    """Images resized, cropped and normalised by a model's `pretrained_cfg`."""

    channels = 3

    def __init__(self, pictures: Images, model: nn.Module) -> None:
        config = resolve_model_data_config(model, use_test_size=True)
        self.pictures, self.classes, self.size = pictures, pictures.classes, config["input_size"][-1]
        self.transform: Any = create_transform(**config, is_training=False)

    def labels(self, split: str) -> np.ndarray:
        return self.pictures.labels(split)

    def fetch(self, split: str, indices: np.ndarray, draw: Draw | None = None) -> Tensor:
        """(n, 3, height, width) float32."""
        images = [Image.fromarray(self.pictures.image(split, int(index))) for index in indices]
        return torch.stack([self.transform(image) for image in images])

    def images(self, fetched: list[Tensor], device: torch.device) -> Tensor:
        return torch.cat(fetched).to(device)
