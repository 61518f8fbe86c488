"""Means, intervals, verdicts and gaps against numbers worked out by hand; the published data agree with themselves."""

import numpy as np
import pytest

from batch_renorm.reporting import compare, paper
from batch_renorm.reporting.compare import steps_to_reach
from batch_renorm.reporting.runs import find_runs

VAL = paper.VAL


def row(comparison, experiment, metric=VAL):
    return next(r for r in comparison.rows if r.series == (experiment, metric))


def verdict(comparison, start):
    return next(r for r in comparison.claims if r.claim.text.startswith(start))


@pytest.fixture
def compared(write, tmp_path, published):
    """compared({(experiment, seed): [val_top1 ...]}, unfinished={...}) -> Comparison"""

    def make(accuracies, scale="glyphs", unfinished=()):
        for (experiment, seed), values in accuracies.items():
            curve = [(100 * (i + 1), v) for i, v in enumerate(values)]
            state = "running" if (experiment, seed) in unfinished else "finished"
            write(tmp_path, experiment, seed, {VAL: curve}, scale=scale, state=state)
        return compare.compare(find_runs([tmp_path])[0], published, scale, {})

    return make


def test_final_best_and_to_baseline(compared):
    c = compared(
        {
            ("iid_batchnorm", 0): [40, 60.0, 59.0],
            ("iid_batchnorm", 1): [40, 61.0, 62.0],
            ("noniid_batchnorm", 0): [40, 56.0, 50.0],
            ("noniid_batchnorm", 1): [40, 55.0, 52.0],
        }
    )
    ours = row(c, "noniid_batchnorm")
    assert ours.seeds == (0, 1)
    assert ours.final.values == (50.0, 52.0)
    assert ours.best.values == (56.0, 55.0)
    assert ours.to_baseline.values == (-4.0, -7.0)  # best with best, seed with seed
    assert ours.published == 67.0
    assert ours.published_to_baseline == pytest.approx(-11.3)
    assert ours.minutes == pytest.approx(4.0)
    assert row(c, "iid_batchnorm").to_baseline is None
    assert verdict(c, "batchnorm: non-i.i.d. below").final.values == (9.0, 10.0)


def test_the_gap_is_best_minus_published_on_imagenet(compared):
    c = compared({("iid_renorm", 0): [70, 78.0, 77.0]}, scale="imagenet")
    assert row(c, "iid_renorm").gap == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("renorm", "batchnorm", "expected"),
    [
        ((63, 64, 65), (60, 61, 62), "holds"),  # always 3 above
        ((61, 65, 60), (60, 61, 62), "holds, not sure"),  # 1, 4, -2
        ((60, 60, 63), (60, 61, 63), "does not hold, not sure"),  # 0, -1, 0
        ((50, 51, 52), (60, 61, 62), "does not hold"),
        ((60, 61, 62), (60, 61, 62), "does not hold, not sure"),  # equal is not above, nor clearly not
        ((65,), (60,), "holds, not sure"),  # one seed
        ((55,), (60,), "does not hold, not sure"),
        ((65,), (), "not run"),
    ],
)
def test_verdicts(compared, renorm, batchnorm, expected):
    runs = {("micro4_renorm", i): [v] for i, v in enumerate(renorm)}
    runs |= {("micro4_batchnorm", i): [v] for i, v in enumerate(batchnorm)}
    assert verdict(compared(runs), "groups of 4: Batch Renorm above").verdict == expected


def test_unfinished_runs_are_shown_and_not_counted(compared):
    c = compared(
        {("iid_renorm", 0): [50, 60], ("iid_renorm", 1): [50, 10], ("iid_batchnorm", 1): [60]},
        unfinished={("iid_renorm", 1)},
    )
    ours = row(c, "iid_renorm")
    assert ours.final.values == (60.0,)
    assert [run.seed for run in ours.unfinished] == [1]
    assert verdict(c, "i.i.d.: Batch Renorm").verdict == "not run"
    [command] = [m for m in c.missing if "experiment=iid_renorm " in m]
    assert "seed=1  # resumes" in command


def test_the_commands_that_are_named_are_runs_of_train(compose, write, tmp_path):
    for scale in ("glyphs", "imagenet"):
        commands = compare.missing_commands([], scale)
        assert len(commands) == 7
        for command in commands[:2]:
            python, script, *overrides = command.split()
            assert (python, script) == ("python", "train.py")
            config = compose(*overrides)
            assert f"experiment={config['experiment']}" in overrides
            assert config["scale"] == scale
    data = {"data": {"root": "/my images"}}
    write(tmp_path, "iid_renorm", 0, {VAL: [(1, 1.0)]}, scale="imagenet", state="stopped", config=data)
    commands = compare.missing_commands(find_runs([tmp_path])[0], "imagenet")
    assert "data.root='/my images'  # resumes: stopped at step" in commands[1]


def test_missing_are_the_seeds_that_most_experiments_have(compared):
    """Pairs use the seeds that both have, whatever the others are."""
    values = {(e, s): [50 + s] for e in paper.EXPERIMENTS for s in range(6 if e.startswith("iid") else 3)}
    del values["micro4_renorm", 2]
    c = compared(values | {("iid_renorm", 7): [90]})
    assert c.missing == ("python train.py experiment=micro4_renorm seed=2",)
    assert verdict(c, "i.i.d.: Batch Renorm").final.values == (0.0,) * 6
    assert verdict(c, "non-i.i.d.: Batch Renorm above").final.n == 3


def test_steps_to_reach():
    curve = np.array([100, 200, 300, 400]), np.array([20.0, 40.0, 30.0, 60.0])
    assert steps_to_reach(curve, 30) == 150  # the first time, interpolated
    assert steps_to_reach(curve, 50) == pytest.approx(366.67, abs=0.01)
    assert steps_to_reach(curve, 60) == 400
    assert steps_to_reach(curve, 60.1) is None
    assert steps_to_reach(curve, 10) == 100  # an upper bound


def test_reach_uses_shares_of_each_own_baseline(compared):
    c = compared({("iid_batchnorm", 0): [40, 60, 100], ("iid_renorm", 0): [85, 90, 91]})
    assert c.thresholds == pytest.approx((80, 90, 95, 98))
    assert row(c, "iid_batchnorm").reach == ((250.0,), (275.0,), (287.5,), (295.0,))
    assert row(c, "iid_renorm").reach == ((100.0,), (200.0,), (), ())
    # The paper's baseline passes 90% of 78.3 between 30k and 32k steps.
    assert 28_000 < row(c, "iid_batchnorm").published_reach[1] < 34_000
    assert row(c, "noniid_batchnorm").published_reach[1] is None


def test_mean_curve_interpolates_between_different_evaluation_steps(write, tmp_path):
    write(tmp_path, "iid_renorm", 0, {VAL: [(100, 10), (200, 20), (300, 30)]})
    write(tmp_path, "iid_renorm", 1, {VAL: [(150, 25), (250, 35)]})
    steps, *mean_low_high = compare.mean_curve(find_runs([tmp_path])[0], VAL)
    np.testing.assert_array_equal(steps, [150, 200, 250])
    np.testing.assert_array_equal(mean_low_high, [[20, 25, 30], [15, 20, 25], [25, 30, 35]])


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
