"""Batch Renormalization, torch only: see README.md in this folder."""

from batch_renorm.norm.convert import convert_batchnorm, to_batchnorm
from batch_renorm.norm.functional import batch_renorm
from batch_renorm.norm.layers import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from batch_renorm.norm.modes import Ramp, batch_statistics, set_limits, training_normalization
from batch_renorm.norm.statistics import StepStatistics

__all__ = [
    "BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d", "Ramp", "StepStatistics", "batch_renorm", "batch_statistics",
    "convert_batchnorm", "set_limits", "to_batchnorm", "training_normalization",
]  # fmt: skip
