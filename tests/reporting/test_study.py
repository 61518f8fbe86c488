"""A study: what is averaged, what stands apart, and where values are on the axis."""

import csv

import pytest

from batch_renorm.reporting.runs import find_runs
from batch_renorm.reporting.study import axis, study
from batch_renorm.showing.study import draw_grid, draw_lines
from scripts.report import expected


@pytest.fixture
def sweep(trained):
    """sweep(experiment, seed, final, *overrides): a run whose best is 1 above its final value."""

    def sweep(experiment, seed, final, *overrides, **run):
        curve = ((100, final + 1.0), (200, final))
        return trained(f"experiment={experiment}", f"seed={seed}", *overrides, curve=curve, **run)

    return sweep


def texts(drawing):
    return [text.get_text() for axes in drawing.axes for text in axes.texts]


def test_a_sweep_becomes_lines_of_means_and_what_differs_stands_apart(report, sweep, tmp_path):
    for seed in (0, 1):
        for alpha, final in ((0.003, 50.0), (0.02, 60.0), (0.1, 55.0)):  # 0.02 is the scale's
            sweep("noniid_renorm", seed, final + 2 * seed, *([f"size.alpha={alpha}"] if alpha != 0.02 else []))
    sweep("noniid_renorm", 0, 10.0, "size.alpha=0.1", "ramp.rmax=5")  # another recipe, once: no line
    sweep("micro4_renorm", 0, 40.0, "size.alpha=0.1", "ramp.rmax=5")
    diverged = sweep("micro4_renorm", 0, 30.0, "size.alpha=0.3", "ramp.rmax=5", state="stopped", step=37)
    (diverged / "curve.csv").unlink()  # before it measured anything
    sweep("iid_groupnorm", 0, 45.0)  # one value: a level line, if it is asked for
    heading = "A message with $ in it, of which there is so much that it does not fit into one line of the figure"
    report("--study", "size.alpha", "--title", heading)
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
    assert "## A message with \\$ in it" in page
    assert "seed 0 stopped at step 37 of 7200" in page
    assert (tmp_path / "report/study/glyphs-size.alpha.png").stat().st_size > 5000
    report("--study", "size.alpha", "--figure", "noniid_renorm", "iid_groupnorm")
    page = (tmp_path / "report/study/glyphs-size.alpha.md").read_text(encoding="utf-8")
    assert "GroupNorm, i.i.d. (ours)" in page
    assert "micro4" not in page


def test_pairs_of_values_are_a_row_and_combinations_a_grid(sweep, tmp_path):
    for rmax, dmax in ((1.1, 0.1), (3.0, 5.0), ("inf", "inf")):
        state = {"state": "stopped", "step": 210} if rmax == "inf" else {}
        sweep("noniid_renorm", 0, 50.0, f"ramp.rmax={rmax}", f"ramp.dmax={dmax}", **state)
    for value in ("size.alpha=0.1", "ramp.rmax=1.1"):
        sweep("micro4_renorm", 0, 40.0, value)
    sweep("micro4_renorm", 0, 41.0, "size.alpha=0.1", "ramp.rmax=1.1")
    sweep("micro4_renorm", 0, 42.0)
    runs = find_runs([tmp_path / "runs"], expected)[0]
    drawing = draw_lines(study(runs, ["ramp.rmax", "ramp.dmax"], expected), ["a", "b"], "")
    labels = [label.get_text().replace("\n", ", ") for label in drawing.axes[0].get_xticklabels()]
    assert labels == ["1.1, 0.1", "1.1, 5", "3, 5", "inf, inf"]
    assert drawing.axes[0].get_ylim() == drawing.axes[1].get_ylim()
    assert "\N{MULTIPLICATION SIGN} 210" in texts(drawing)
    [line] = lines = study(runs, ["size.alpha", "ramp.rmax"], expected, ["micro4_renorm"])
    assert line.default == ("0.02", "3")
    [axes] = draw_grid(lines, ["size.alpha", "ramp.rmax"], "").axes
    assert sorted(text.get_text() for text in axes.texts) == ["40.0", "40.0", "41.0", "42.0"]
    assert axes.images[0].get_array().tolist() == [[40, 41], [42, 40]]  # a row for each rmax


def test_what_cannot_be_studied_is_one_line(report, sweep):
    sweep("noniid_renorm", 0, 50.0)
    for arguments, answer in (
        (["size.alpa"], "did you mean size.alpha"),
        (["size.alpha"], "no runs of one experiment differ"),
        (["size.alpha", "--figure", "noniid_renrom"], "did you mean noniid_renorm"),
    ):
        _, err = report("--study", *arguments, status=2)
        assert err.count("\n") == 1
        assert answer in err


@pytest.mark.parametrize(
    ("values", "places", "logarithmic"),
    [
        (["0.1", "0.01", "1"], [0.01, 0.1, 1], True),
        (["2", "16", "4", "8"], [2, 4, 8, 16], True),
        (["0", "1", "10"], [0, 1, 10], False),
        (["1", "2", "3", "4"], [1, 2, 3, 4], False),
        (["inf", "3", "1.5"], [0, 1, 2], False),
        (["paper", "3"], [0, 1], False),
    ],
)
def test_places_on_the_axis(values, places, logarithmic):
    found, on_a_log = axis((value,) for value in values)
    assert (list(found.values()), on_a_log) == (places, logarithmic)
