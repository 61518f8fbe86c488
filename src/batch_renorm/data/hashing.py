"""Random numbers as a function of their place: integer hashing with tensor operations.

Every device, batch and order gives the same numbers. So a whole minibatch of generated images can
be drawn at once and is still a pure function of its indices.
"""

import torch
from torch import Tensor


def signed(bits: int) -> int:
    """The int32 with these 32 bits."""
    return bits - (1 << 32) if bits >= 1 << 31 else bits


def shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, with zeros from the left as for unsigned numbers."""
    return (bits >> by).bitwise_and_((1 << 32 - by) - 1)


def mix(bits: Tensor) -> Tensor:
    """A bijection on 32-bit integers in which every input bit affects every output bit.

    The two-round xor-shift-multiply finaliser with Chris Wellons' constants ("lowbias32").

    Args:
        bits: int32, whose products wrap. int64 with masks would take up to ten times as long on a CPU.
    """
    bits = shifted(bits, 16).bitwise_xor_(bits).mul_(0x7FEB352D)
    bits = shifted(bits, 15).bitwise_xor_(bits).mul_(signed(0x846CA68B))
    return shifted(bits, 16).bitwise_xor_(bits)


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each key; a smaller count gives the first of them.

    Args:
        keys: (n,) int64, not negative, below 2**32.

    Returns:
        (n, count) float32 multiples of 2**-24.
    """
    places = torch.arange(count, dtype=torch.int32, device=keys.device) * signed(0x9E3779B9)
    return shifted(mix(mix(keys.int())[:, None] + places), 8).float() * 2.0**-24
