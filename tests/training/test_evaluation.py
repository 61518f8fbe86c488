"""When which metrics are measured."""

from batch_renorm.records.curve import read_rows
from batch_renorm.training.evaluation import watched
from tests.conftest import TINY
from tests.running.runs import trained


def test_only_some_evaluations_measure_on_minibatches(compose, tmp_path):
    """The last one is always whole."""
    folder = trained(compose(*TINY, "size.steps=10", "evaluation.minibatches_every=2"), tmp_path)
    rows = read_rows(folder.curve)
    steps_of = {metric: [step for step, name, _ in rows if name == metric] for _, metric, _ in rows}
    assert steps_of["val_top1"] == [2, 4, 6, 8, 10]
    for kind in ("batch_statistics", "no_counterpart", "as_trained"):
        assert steps_of[f"val_top1_{kind}"] == [4, 8, 10]


def test_a_long_evaluation_says_how_far_it_is(capfd):
    assert list(watched(range(3), quiet=60)) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    assert list(watched(range(3))) == [0, 1, 2]
    assert "evaluating:   0%" in capfd.readouterr().err
