"""Batch Renormalization (Ioffe, 2017): the layer, and the paper's experiments.

>>> from batch_renorm import BatchRenorm2d
"""

from batch_renorm.norm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    Ramp,
    StepStatistics,
    batch_renorm,
    batch_statistics,
    convert_batchnorm,
    normalize,
    set_limits,
    to_batchnorm,
    training_normalization,
)

__all__ = [
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Ramp",
    "StepStatistics",
    "batch_renorm",
    "batch_statistics",
    "convert_batchnorm",
    "normalize",
    "set_limits",
    "to_batchnorm",
    "training_normalization",
]
