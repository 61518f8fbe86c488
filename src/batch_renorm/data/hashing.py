"""Random numbers as a function of their place: integer hashing with tensor operations.

Every device, batch and order gives the same numbers. So a whole minibatch of generated images can
be drawn at once and is still a pure function of its indices.
"""

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def mix(bits: Tensor) -> Tensor:
    """A bijection on 32-bit integers in which every input bit affects every output bit.

    The two-round xor-shift-multiply finaliser with Chris Wellons' constants ("lowbias32").

    Args:
        bits: int64 in 0 .. 2**32 - 1. Products may overflow 63 bits; the low 32 are still right.
    """
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D & MASK
    bits = (bits ^ (bits >> 15)) * 0x846CA68B & MASK
    return bits ^ (bits >> 16)


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key; a smaller count gives the first of them.

    Args:
        keys: (n,) int64, not negative, below 2**32.

    Returns:
        (n, count) float32 multiples of 2**-24.
    """
    places = torch.arange(count, device=keys.device) * 0x9E3779B9 & MASK
    return (mix(mix(keys)[:, None] + places & MASK) >> 8).float() * 2.0**-24
