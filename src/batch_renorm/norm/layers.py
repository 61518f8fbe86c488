"""BatchRenorm1d, 2d and 3d, and the layers of a model."""

from torch import nn

from batch_renorm.norm.base import BatchRenorm


def layers_of(model: nn.Module) -> dict[str, "BatchRenorm"]:
    """Every BatchRenorm layer of a model by name; ValueError if there is none."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BatchRenorm)}
    if not layers:
        text = f"{type(model).__name__} has no BatchRenorm layer: convert its batchnorm by convert_batchnorm(model)"
        raise ValueError(f"{text}, after tools that put batchnorm in its place (sync_batchnorm, unfreeze)")
    return layers


def has_layers(model: nn.Module) -> bool:
    """Whether a model has a BatchRenorm layer, so that its output for an image depends on a group."""
    return any(isinstance(module, BatchRenorm) for module in model.modules())


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    r"""Batch Renormalization of :math:`(N, C)` or :math:`(N, C, L)`; see :class:`BatchRenorm2d`."""

    dims, expected, folds_into = (2, 3), "(N, C) or (N, C, L)", nn.BatchNorm1d


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    r"""Batch Renormalization of :math:`(N, C, H, W)`; the output has the input's dtype and memory format.

    In training :math:`y` is that of :func:`batch_renorm`, and in evaluation

    .. math::
        y = \gamma (x - \mu) / \sigma + \beta, \qquad
        \mu = \text{running\_mean}, \quad \sigma = \sqrt{\text{running\_var} + \epsilon}

    Every training forward moves :math:`\mu \leftarrow \mu + \alpha (\mu_B - \mu)` and :math:`\sigma` likewise, by the
    mean over the groups of the batch, unless :class:`StepStatistics` defers this to the end of the step. The paper
    relaxes the limits from (1, 0), which is batchnorm: by a :class:`Ramp`, or :func:`set_limits`. A channel that is not
    finite keeps its mu and sigma; only on CPU a RuntimeWarning says so, because elsewhere the check would wait.

    Args:
        num_features, eps, affine, device, dtype: as in nn.BatchNorm2d. mu and sigma are float32 (float64 for float64).
        momentum: the paper's alpha, the rate at which mu and sigma move. None, which ``update_bn`` sets,
            estimates them: the plain mean over all batches since ``reset_running_stats``, with r = 1, d = 0.
            1, which PreciseBN sets, gives those of the last batch, also with r = 1, d = 0.
        track_running_stats: True. If a tool sets it to False later, mu and sigma stay.
        group_size: consecutive examples that are normalised together. Default: the whole batch.
        rmax, dmax: bounds of r and d until :func:`set_limits` is called.
        scale, center: whether there is a gamma; a beta, also called ``bias``. The paper has ``scale=False``.
        averages: ``"sigma"``, or ``"variance"`` for the batchnorm baseline.
        ramp: the bounds as a function of ``num_batches_tracked``, the updates so far, which a checkpoint keeps.

    Raises ValueError for a wrong dimension or channels, or a batch that does not divide into groups; RuntimeError if
    activation checkpointing repeats a forward after mu and sigma have moved, which StepStatistics prevents.
    """

    dims, expected = (4,), "(N, C, H, W)"
    folds_into: type[nn.Module] = nn.BatchNorm2d


class BatchRenorm3d(BatchRenorm, nn.BatchNorm3d):
    r"""Batch Renormalization of :math:`(N, C, D, H, W)`; see :class:`BatchRenorm2d`."""

    dims, expected, folds_into = (5,), "(N, C, D, H, W)", nn.BatchNorm3d


class BatchRenormNd(BatchRenorm, nn.BatchNorm2d):
    """Replaces nn.SyncBatchNorm: takes any dimension, and is a BatchNorm2d for tools that look for one."""
