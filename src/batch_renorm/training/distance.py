"""The paper's hypothesis as a measurement: the distance between the activations of training and inference.

The paper says that batchnorm suffers because activations depend on the minibatch in training but not at inference
(sections 2 and 3). Here the inference model sees the same images twice, normalised as in training and as at inference,
and the outputs y of every norm layer, and of what comes before it, are compared:

    distance = ||y_training - y_inference|| / ||y_inference||        (L2, over all images and positions).
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from batch_renorm.data.loaders import Source, rank_share
from batch_renorm.norm import training_normalization
from batch_renorm.norm.layers import has_layers, layers_of

MINIBATCHES = 16  # enough for two digits; one at a time, so that the outputs of all layers fit in memory


@torch.no_grad()
def activation_distances(
    model: nn.Module, source: Source, minibatches: np.ndarray, device: torch.device, rank: int = 0, ranks: int = 1
) -> dict[str, float]:
    """`activation_distance`, the mean over layers, and `activation_distance/<layer>`, in the order of the network.

    Empty without BatchRenorm layers: such a network computes the same in training and at inference.

    Args:
        model: in evaluation mode, with the limits of training.
        minibatches: (minibatches, size) indices of validation images, composed as in training. The ranks share the
            first 16 and agree on the result.
    """
    if not has_layers(model):
        return {}
    names = list(layers_of(model))
    sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)
    for indices in rank_share(list(minibatches[:MINIBATCHES]), rank, ranks):
        fetched = source.fetch("val", indices, None)
        images = source.images([fetched], device).contiguous(memory_format=torch.channels_last)
        with training_normalization(model):
            in_training = norm_outputs(model, images)
        at_inference = norm_outputs(model, images)
        pairs = [(in_training[name] - at_inference[name], at_inference[name]) for name in names]
        sums += torch.stack([torch.stack(list(map(squares, outputs))) for outputs in zip(*pairs, strict=True)])
    if ranks > 1:
        dist.all_reduce(sums)
    distances = (sums[0] / sums[1].clamp_min(1e-30)).sqrt()
    by_layer = {f"activation_distance/{name}": value for name, value in zip(names, distances.tolist(), strict=True)}
    return {"activation_distance": distances.mean().item(), **by_layer}


def squares(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()


def norm_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of every norm layer for some images, by layer name."""
    outputs: dict[str, Tensor] = {}
    names: dict[nn.Module, str] = {layer: name for name, layer in layers_of(model).items()}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer in names:
            outputs[names[layer]] = output.clone()  # the next activation may work in place

    with nn.modules.module.register_module_forward_hook(keep):
        model(images)
    return outputs
