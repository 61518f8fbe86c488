"""Workers -> ranks -> passes: which rank computes which minibatches of a step, and in which pass.

The paper's step is the mean gradient of `workers` minibatches. A rank owns a contiguous range of
workers and computes it in several passes. All ranks make the same number of passes, so that collective
calls match; the sizes of ranges and passes differ by at most one worker.
"""

import itertools

from batch_renorm.errors import UserError


def split_evenly(items: range, parts: int) -> list[range]:
    """Cut a range into `parts` contiguous ranges whose lengths differ by at most one, longest first.

    >>> [len(part) for part in split_evenly(range(50), 8)]
    [7, 7, 6, 6, 6, 6, 6, 6]
    """
    if parts < 1:
        raise UserError(f"cannot cut {len(items)} items into {parts} parts")
    short, longer = divmod(len(items), parts)
    ends = [part * short + min(part, longer) for part in range(parts + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def workers_of_rank(workers: int, rank: int, ranks: int) -> range:
    """The contiguous range of the step's workers that `rank` owns.

    Raises:
        UserError: more ranks than workers, so that a rank would have nothing to do.
    """
    if ranks > workers:
        raise UserError(
            f"{ranks} ranks but only {workers} workers a step: a rank would have no minibatch; "
            f"use at most {workers} devices or raise workers"
        )
    return split_evenly(range(workers), ranks)[rank]


def busy(workers: int, ranks: int) -> float:
    """The mean fraction of a step in which ranks compute; the ranks with the most workers compute all the time."""
    return workers / ranks / -(-workers // ranks)


def balance(workers: int, ranks: int) -> str:
    """How busy `ranks` ranks are, and which numbers of ranks near it would be better.

    >>> balance(50, 8)
    'busy 89% of a step, while 7 are computed; 10 or 5 ranks would be busy all of it'
    >>> balance(50, 10)
    'busy all of a step'
    """
    if workers % ranks == 0:
        return "busy all of a step"
    even = [number for number in range(1, workers + 1) if workers % number == 0]
    more, fewer = min(n for n in even if n > ranks), max(n for n in even if n < ranks)
    return (
        f"busy {busy(workers, ranks):.0%} of a step, while {-(-workers // ranks)} are computed; "
        f"{more} or {fewer} ranks would be busy all of it"
    )


def passes_per_step(workers: int, ranks: int, workers_per_pass: int | None) -> int:
    """The passes of every rank in a step, so that no pass has more than `workers_per_pass` workers.

    None means one pass: all of a rank's workers at once.
    """
    largest_share = -(-workers // ranks)
    if workers_per_pass is None:
        return 1
    if workers_per_pass < 1:
        raise UserError(f"workers_per_pass must be at least 1, got {workers_per_pass}")
    return -(-largest_share // workers_per_pass)


def workers_of_pass(workers: int, rank: int, ranks: int, passes: int, index: int) -> range:
    """The workers of the rank's pass number `index` of a step; later passes are never shorter.

    A rank with fewer workers than the largest share may have an empty pass. It comes first, because
    the ranks exchange gradients in the last pass of a step.
    """
    share = workers_of_rank(workers, rank, ranks)
    lengths = [len(part) for part in split_evenly(share, passes)][::-1]
    start = sum(lengths[:index])
    return share[start : start + lengths[index]]
