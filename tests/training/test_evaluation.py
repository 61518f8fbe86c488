"""When which metrics are measured."""

from batch_renorm.records.curve import read_rows

ON_MINIBATCHES = ["val_top1_batch_statistics", "val_top1_no_counterpart", "val_top1_as_trained"]


def steps_of(folder, metric):
    return [step for step, name, _ in read_rows(folder / "curve.csv") if name == metric]


def test_only_some_evaluations_measure_on_minibatches(train_command, tmp_path):
    train_command("size.steps=10", "evaluation.minibatches_every=2")
    assert steps_of(tmp_path / "run", "val_top1") == [2, 4, 6, 8, 10]
    for metric in ON_MINIBATCHES:
        assert steps_of(tmp_path / "run", metric) == [4, 8, 10]  # the last one is always whole


def test_a_number_below_1_is_refused(train_command):
    done = train_command("evaluation.minibatches_every=0", check=False)
    assert done.returncode == 2
    assert "evaluation.minibatches_every must be greater than 0, got 0" in done.stderr
