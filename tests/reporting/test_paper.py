"""The published data are what the paper prints, and agree among themselves."""

import pytest

from batch_renorm.reporting import paper


def test_curves_reach_the_printed_numbers(published):
    for series, (steps, values) in published.curves.items():
        printed = [number.top1 for number in published.numbers[series]]
        if series == ("micro4_batchnorm", paper.VAL):  # the figure ends before the step of the printed number
            assert steps[-1] < published.number(series).at_step
            assert printed[0] - 0.6 < values.max() < printed[0]
        else:
            assert min(abs(values.max() - p) for p in printed) <= 0.15, series
        assert (steps[1:] > steps[:-1]).all()
        assert values.min() >= 30
        assert values.max() <= 80


def test_the_paper_agrees_with_its_own_claims(published):
    for claim in paper.CLAIMS:
        assert claim.agrees(published.difference(claim.left, claim.right)), claim.text
        assert claim.agrees(published.final_difference(claim.left, claim.right)), claim.text
    assert published.final_difference(paper.BASELINE, ("noniid_batchnorm", paper.VAL)) == pytest.approx(23, abs=0.2)
    steps, values = published.curves["noniid_batchnorm", paper.VAL]
    assert steps[values.argmax()] < 60_000
    renorm = published.number(("noniid_renorm", paper.VAL))
    assert (renorm.top1, renorm.at_step) == (78.5, 120_000)


def test_seven_experiments_nine_curves_all_with_a_number(published):
    assert len(paper.EXPERIMENTS) == 7
    assert set(paper.SERIES) == set(published.curves) == set(published.numbers)
    assert len(paper.SERIES) == 9
    drawn = {series for figure in paper.FIGURES.values() for series in figure.lines}
    assert drawn == set(paper.SERIES)
    assert len(paper.FIGURES["fig3"].lines) == 5


@pytest.mark.parametrize(
    ("relation", "margin", "agreeing", "contrary"),
    [(">", 5, [5.1], [5, 4.9, -6]), (">=", 1, [-1, 0, 3], [-1.1]), ("=", 2, [-2, 2], [-2.1, 2.1])],
)
def test_claims_with_margins(relation, margin, agreeing, contrary):
    claim = paper.Claim("", paper.BASELINE, relation, paper.BASELINE, margin)
    assert all(map(claim.agrees, agreeing))
    assert not any(map(claim.agrees, contrary))
