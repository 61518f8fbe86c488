"""A study: what is averaged, what stands apart, and where values are on the axis."""

import csv

import pytest

from batch_renorm.reporting.study import axis

VAL = "val_top1"


@pytest.fixture
def sweep(compose, write, tmp_path):
    """sweep(experiment, seed, final, *overrides): a run as train.py -m leaves it, its best 1 above its final."""

    def sweep(experiment, seed, final, *overrides, **run):
        config = compose(f"experiment={experiment}", f"seed={seed}", *overrides)
        name = ",".join((experiment, *overrides))
        write(tmp_path / "runs", name, seed, {VAL: [(100, final + 1.0), (200, final)]}, config=config, **run)

    return sweep


def test_a_sweep_becomes_lines_of_means_and_what_differs_stands_apart(report, sweep, tmp_path):
    for seed in (0, 1):
        for alpha, final in ((0.003, 50.0), (0.02, 60.0), (0.1, 55.0)):  # 0.02 is the scale's
            sweep("noniid_renorm", seed, final + 2 * seed, *([f"size.alpha={alpha}"] if alpha != 0.02 else []))
    sweep("noniid_renorm", 0, 10.0, "size.alpha=0.1", "ramp.rmax=5")  # another recipe, once: no line
    sweep("micro4_renorm", 0, 40.0, "size.alpha=0.1", "ramp.rmax=5")
    sweep("micro4_renorm", 0, 30.0, "size.alpha=0.3", "ramp.rmax=5", state="stopped", step=200)
    sweep("iid_groupnorm", 0, 45.0)  # one value: a level line, if it is asked for
    code, _, err = report("--study", "size.alpha", "--title", "A message")
    assert code == 0, err
    with open(tmp_path / "report/study/glyphs-size.alpha.csv", newline="", encoding="utf-8") as file:
        rows = {(row["experiment"], row["size.alpha"]): row for row in csv.DictReader(file)}
    assert {key: (row["final_mean"], row["best_mean"], row["seeds"], row["default"]) for key, row in rows.items()} == {
        ("noniid_renorm", "0.003"): ("51", "52", "2", "0"),
        ("noniid_renorm", "0.02"): ("61", "62", "2", "1"),
        ("noniid_renorm", "0.1"): ("56", "57", "2", "0"),
        ("micro4_renorm, ramp.rmax=5", "0.1"): ("40", "41", "1", "0"),
        ("micro4_renorm, ramp.rmax=5", "0.3"): ("", "", "0", "0"),
    }
    assert float(rows["noniid_renorm", "0.02"]["final_high95"]) == pytest.approx(61 + 12.706, abs=0.01)
    page = (tmp_path / "report/study/glyphs-size.alpha.md").read_text(encoding="utf-8")
    assert "## A message" in page
    assert "seed 0 stopped at step 200 of 3000" in page
    assert (tmp_path / "report/study/glyphs-size.alpha.png").stat().st_size > 5000
    code, _, err = report("--study", "size.alpha", "--figure", "noniid_renorm", "iid_groupnorm")
    assert code == 0, err
    assert "GroupNorm, i.i.d. (ours)" in (tmp_path / "report/study/glyphs-size.alpha.md").read_text(encoding="utf-8")


def test_what_cannot_be_studied_is_one_line(report, sweep):
    sweep("noniid_renorm", 0, 50.0)
    for option, answer in (
        ("size.alpa", "did you mean size.alpha"),
        ("size.alpha", "no runs of one experiment differ"),
    ):
        code, _, err = report("--study", option)
        assert (code, err.count("\n")) == (2, 1)
        assert answer in err


@pytest.mark.parametrize(
    ("values", "places", "logarithmic"),
    [
        (["0.1", "0.01", "1"], [0.01, 0.1, 1], True),
        (["2", "16", "4", "8"], [2, 4, 8, 16], True),
        (["0", "1", "10"], [0, 1, 10], False),
        (["1", "2", "3", "4"], [1, 2, 3, 4], False),
        (["Infinity", "3", "1.5"], [0, 1, 2], False),
        (["paper", "3"], [0, 1], False),
    ],
)
def test_places_on_the_axis(values, places, logarithmic):
    assert (list(axis(values)[0].values()), axis(values)[1]) == (places, logarithmic)
