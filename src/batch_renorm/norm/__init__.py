"""Batch Renormalization: see README.md in this folder. Needs torch; timm only where it is used."""

from batch_renorm.norm.convert import convert_batchnorm, to_batchnorm
from batch_renorm.norm.functional import batch_renorm
from batch_renorm.norm.layers import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, has_layers, layers_of
from batch_renorm.norm.modes import batch_statistics, set_limits, training_normalization
from batch_renorm.norm.ramp import Ramp
from batch_renorm.norm.statistics import StepStatistics

__all__ = [
    "BatchRenorm", "BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d", "Ramp", "StepStatistics", "batch_renorm",
    "batch_statistics", "convert_batchnorm", "has_layers", "layers_of", "set_limits", "to_batchnorm",
    "training_normalization",
]  # fmt: skip
