"""Batch Renormalization (Ioffe, 2017): the layer, and the paper's experiments.

>>> from batch_renorm import BatchRenorm2d
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_renorm.norm import (
        BatchRenorm1d,
        BatchRenorm2d,
        BatchRenorm3d,
        Ramp,
        StepStatistics,
        batch_renorm,
        batch_statistics,
        convert_batchnorm,
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
    "set_limits",
    "to_batchnorm",
    "training_normalization",
]


def __getattr__(name: str) -> Any:
    """Import the layer, and torch with it, on first use: reading run folders needs neither."""
    if name in __all__:
        from batch_renorm import norm

        return getattr(norm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
