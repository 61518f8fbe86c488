"""How a tensor lies in memory and what suits it: decided once for all tensors of a kind.

A tensor has one of two memory orders:

* *planes*: ``(N, C, L)`` contiguous, one image plane after the other;
* *rows*: channels innermost (channels_last, or a plain ``(N, C)`` matrix).

Either is a matrix of every group, ``(G, M, K)``: rows have a column for each channel, planes one for
each channel and position, K = C * L. Down such columns sums are fast and add few values, so that
planes are best taken so while there are not too many.

Suffixes name the axes: G groups, M rows of a group's matrix, K its columns, N examples, C channels,
L columns of a channel, P = N * C planes.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)

# Planes are taken as a matrix that has so many rows or more, and so few columns that their sums stay
# in an L2 cache.
COLUMNS_ROWS = 8
COLUMNS = 1 << 17
# Values of a channel that may be summed into one float32 accumulator. Over 700,000 values that is off
# by 3e-4 of the variance; chunks of this size, merged, by 4e-6, and in half precision an eighth of it.
ROWS_CHUNK = 1 << 14


class Layout(NamedTuple):
    """Of a dense tensor, whose groups are equal numbers of consecutive examples."""

    groups: int
    M: int
    K: int
    C: int
    L: int
    in_rows: bool
    """The memory order."""
    on_cpu: bool
    half: bool
    plain: bool
    """Whether what is affine in every column is fastest in plain operations on the matrices."""
    together: int
    """Rows that are seen as one when they are summed, 1 where every sum is short enough, 0 where none divides M."""
    size: tuple[int, ...]
    """(G, M, K), or (M, K) of one group."""
    strides: tuple[int, ...]
    channel: tuple[int, ...]
    """(C, 1, ...): the shape of what has a value for each channel, as a factor of the tensor."""


def layout(x: Tensor, groups: int) -> Layout:
    """Of a tensor that has one of the memory orders."""
    lay = layout_of(x.shape, x.stride(), x.dtype, x.is_cpu, groups)
    assert lay is not None
    return lay


@lru_cache(maxsize=4096)
def layout_of(  # None without one of the memory orders
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, on_cpu: bool, groups: int
) -> Layout | None:
    x = torch.empty_strided(shape, strides, device="meta")
    in_rows = is_in_rows(x)
    if not in_rows and not x.is_contiguous():
        return None
    C = shape[1]
    L = 1 if in_rows else x.numel() // (shape[0] * C)
    K = C * L
    M = x.numel() // (groups * K)
    half = dtype in HALF
    plain = on_cpu and not half and (in_rows or (M >= COLUMNS_ROWS and K <= COLUMNS))
    channel = (C, *(1,) * (len(shape) - 2))
    size, steps = ((M, K), (K, 1)) if groups == 1 else ((groups, M, K), (M * K, K, 1))
    return Layout(groups, M, K, C, L, in_rows, on_cpu, half, plain, _together(M, half), size, steps, channel)


def _together(M: int, half: bool) -> int:
    fewest = -(-M * (8 if half else 1) // ROWS_CHUNK)
    return next((k for k in range(fewest, 8 * fewest) if M % k == 0), 0)


def is_in_rows(x: Tensor) -> bool:
    if x.dim() == 4 and not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5 and not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.is_contiguous() and x.numel() == x.shape[0] * x.shape[1]


def like(g: Tensor, x: Tensor) -> Tensor:
    """``g`` in the memory order of the dense ``x``."""
    return torch.empty_like(x, dtype=g.dtype).copy_(g) if g.stride() != x.stride() else g


def matrix(x: Tensor, lay: Layout) -> Tensor:
    """(G, M, K), or (M, K) of one group: a view."""
    return x.as_strided(lay.size, lay.strides)


def columns(t: Tensor, lay: Layout) -> Tensor:
    """(G, C), or (C) of one group, as a factor of every row of a matrix."""
    if lay.L > 1:
        t = t.repeat_interleave(lay.L, -1)
    return t if lay.groups == 1 else t.unsqueeze(1)


def channels(t_GK: Tensor, lay: Layout) -> Tensor:
    """The mean over the columns of every channel, (G, C)."""
    return t_GK if lay.L == 1 else mean_of_rows(t_GK.view(-1, lay.L).t()).view(-1, lay.C)


def sum_of_rows(t: Tensor) -> Tensor:
    """Of a small matrix: as a product, a fraction of the time of torch's sum where that is not in a cache."""
    return t.new_ones(len(t)) @ t if _exact_products(t) else t.sum(0)


def mean_of_rows(t: Tensor) -> Tensor:
    return t.new_full((len(t),), 1 / len(t)) @ t if _exact_products(t) else t.mean(0)


def _exact_products(t: Tensor) -> bool:
    """Autocast does them in half precision, and a GPU may in TF32."""
    return t.is_cpu and not torch.is_autocast_enabled("cpu")


def split(x: Tensor, lay: Layout) -> list[Tensor]:
    """Views of the groups, each in a shape that the native kernels take without a copy."""
    if lay.in_rows:
        M, C = lay.M, lay.C
        return list(x.as_strided((lay.groups, C, M, 1), (M * C, 1, C, C)).split(1))
    return list(x.split(x.shape[0] // lay.groups))
