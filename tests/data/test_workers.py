"""Workers to ranks to passes: each worker once, the same number of passes on every rank."""

import pytest

from batch_renorm.data.loaders import Division

DIVISIONS = [(50, 1, None), (50, 8, None), (50, 8, 2), (50, 3, 5), (5, 5, 1), (7, 3, 1), (7, 2, 3), (1, 1, 1)]


@pytest.mark.parametrize(("workers", "ranks", "limit"), DIVISIONS)
def test_every_worker_once_in_passes_of_about_equal_size(workers, ranks, limit):
    sizes, seen = [], []
    for rank in range(ranks):
        division = Division(workers, rank, ranks, limit)
        of_rank = [division.workers_of_pass(index) for index in range(division.passes)]
        seen += [worker for part in of_rank for worker in part]
        sizes += [len(part) for part in of_rank]
        assert len(of_rank[-1]) > 0  # the pass that exchanges gradients is never empty
    assert len(sizes) == ranks * Division(workers, 0, ranks, limit).passes
    assert seen == list(range(workers))
    assert max(sizes) <= (limit or workers)
    assert max(sizes) - min(sizes) <= 1


def test_more_ranks_than_workers_is_an_error():
    with pytest.raises(ValueError, match="8 ranks but only 4 workers"):
        Division(4, 0, 8)
