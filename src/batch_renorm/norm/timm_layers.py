"""Batch Renormalization for timm's norm-and-activation layers; the only file here that imports timm."""

from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from batch_renorm.norm.layers import BatchRenorm2d


class BatchRenormAct2d(BatchRenorm2d, BatchNormAct2d):
    """Batch Renormalization, then ``drop``, then ``act``, those of the timm layer that it replaces."""

    def __init__(self, *args, source: nn.Module, **options) -> None:
        super().__init__(*args, **options)
        self.drop, self.act = (getattr(source, part, None) or nn.Identity() for part in ("drop", "act"))

    def as_batchnorm(self) -> nn.Module:
        module = super().as_batchnorm()
        module.drop, module.act = self.drop, self.act
        return module

    def forward(self, x: Tensor) -> Tensor:  # timm's name
        y = super().forward(x)
        return self.act(self.drop(y)) if isinstance(x, Tensor) else y  # for torch.fx the whole layer is one node
