"""The loss of each example."""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """Smoothed cross entropy, plus the weighted one of the auxiliary head's logits; names as in configs/train.yaml."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    aux_weight: NonNegativeFloat

    def __call__(self, output: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        """The loss of each example, float32 (n,).

        Args:
            output: logits (n, classes), or those and the auxiliary head's.
        """
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = self.cross_entropy(logits, labels)
        for logits in auxiliary:
            loss = loss + self.aux_weight * self.cross_entropy(logits, labels)
        return loss

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=self.label_smoothing)
