"""Random numbers that are a function of where they are used: integer hashing with tensor operations.

The same numbers come out on every device, in every batch and in any order, which is what lets a
whole minibatch of generated images be drawn at once and still be a pure function of its indices.
"""

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def mix(bits: Tensor) -> Tensor:
    """A bijection on 32-bit integers in which every input bit affects every output bit.

    The two-round xor-shift-multiply finaliser with Chris Wellons' constants ("lowbias32").

    Args:
        bits: int64 in 0 .. 2**32 - 1. Products may overflow 63 bits; the low 32 are right all the same.
    """
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D & MASK
    bits = (bits ^ (bits >> 15)) * 0x846CA68B & MASK
    return bits ^ (bits >> 16)


def uniform(keys: Tensor, stream: int, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key.

    Args:
        keys: (n,) int64, not negative, below 2**32.
        stream: which of a key's independent sequences; below 2**16.

    Returns:
        (n, count) float32 multiples of 2**-24.
    """
    start = mix(keys ^ mix(torch.full_like(keys, stream * 0x9E3779B9 & MASK)))
    places = torch.arange(count, device=keys.device) * 0x9E3779B9 & MASK
    return (mix(start[:, None] + places & MASK) >> 8).float() * 2.0**-24
