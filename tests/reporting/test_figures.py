"""What is drawn is what was read: the drawing's own lines and texts are checked, not its pixels."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from batch_renorm.reporting import figures, paper
from batch_renorm.reporting.compare import mean_curve
from batch_renorm.reporting.runs import find_runs

FIG3 = paper.FIGURES["fig3"]


def draw(root, published, scale="glyphs", figure=FIG3):
    runs = find_runs([root])[0]
    return figures.draw_curves(figure, runs, published, scale), runs


def texts(drawing):
    return [t.get_text() for t in drawing.texts + [t for axes in drawing.axes for t in axes.texts]]


def test_side_by_side_on_another_data_set(fill, published):
    drawing, runs = draw(fill(), published)
    theirs, ours = drawing.axes
    assert len(theirs.lines) == len(ours.lines) == 5
    assert theirs.get_ylim() == (30, 80)
    assert [to_hex(line.get_color()) for line in theirs.lines] == [to_hex(line.get_color()) for line in ours.lines]
    renorm = [run for run in runs if run.experiment == "noniid_renorm"]
    assert len(renorm) == 3
    expected = np.mean([run.curve["val_top1"][1] for run in renorm], axis=0)
    np.testing.assert_allclose(ours.lines[-1].get_ydata(), expected)
    np.testing.assert_array_equal(theirs.lines[-1].get_ydata(), published.curves["noniid_renorm", "val_top1"][1])


def test_the_band_is_the_range_over_seeds(fill, published):
    drawing, runs = draw(fill(experiments=["noniid_renorm"]), published)
    [band] = drawing.axes[1].collections
    _, _, low, high = mean_curve(runs, "val_top1")
    y = band.get_paths()[0].vertices[:, 1]
    assert y.min() == pytest.approx(low.min())
    assert y.max() == pytest.approx(high.max())


def test_ours_over_theirs_on_imagenet(fill, published):
    drawing, _ = draw(fill(scale="imagenet", steps=140_000, top=1.0), published, "imagenet")
    [axes] = drawing.axes
    assert axes.get_ylim() == (30, 80)
    assert axes.get_xlim() == (0, 140_000)
    styles = [line.get_linestyle() for line in axes.lines]
    assert styles == ["--"] * 5 + ["-"] * 5
    assert min(line.get_linewidth() for line in axes.lines[5:]) > max(line.get_linewidth() for line in axes.lines[:5])


def test_every_curve_fits_the_axis(write, published, tmp_path):
    write(tmp_path, "noniid_renorm", 0, {"val_top1": [(100, 5.0), (3000, 91.0)]})
    write(tmp_path, "noniid_batchnorm", 0, {"val_top1": [(100, 2.0), (3000, 12.0)]})
    low, high = draw(tmp_path, published)[0].axes[1].get_ylim()
    assert low < 12
    assert high > 91


def test_the_legend_gives_printed_best_and_final(write, published, tmp_path):
    write(tmp_path, "noniid_renorm", 0, {"val_top1": [(100, 50.0), (200, 61.0), (300, 60.0)]})
    write(tmp_path, "noniid_renorm", 1, {"val_top1": [(100, 50.0), (200, 62.0), (300, 63.0)]})
    shown = texts(draw(tmp_path, published)[0])
    at = shown.index("Batch Renorm")
    assert shown[at + 1 : at + 4] == ["78.6%", "62.0%", "61.5%"]  # the legend's 78.6, not the text's 78.5


def test_unfinished_seeds_are_drawn_apart_from_the_mean(fill, published):
    root = fill(experiments=["noniid_renorm"], seeds=[0, 1])
    fill(experiments=["noniid_renorm"], seeds=[2], state="running", step=1200)
    drawing, _ = draw(root, published)
    mean, unfinished, ring = drawing.axes[1].lines
    assert mean.get_xdata()[-1] == 3000
    assert unfinished.get_linestyle() != "-"
    assert unfinished.get_xdata()[-1] == 1200
    assert ring.get_marker() == "o"
    assert list(ring.get_xdata()) == [1200]
    assert "dotted, to a ring: unfinished" in texts(drawing)


def test_only_unfinished_runs_give_a_number_so_far(write, published, tmp_path):
    write(tmp_path, "noniid_renorm", 0, {"val_top1": [(100, 41.0)]}, state="running", step=100)
    shown = texts(draw(tmp_path, published)[0])
    at = shown.index("Batch Renorm")
    assert shown[at + 1 : at + 4] == ["78.6%", "\N{EN DASH}", "41.0% so far"]


def test_a_figure_without_runs_says_so(write, published, tmp_path):
    write(tmp_path, "micro4_renorm", 0, {"val_top1": [(100, 41.0)]})
    assert "not run yet" in texts(draw(tmp_path, published)[0])


def test_the_summary_has_a_dot_for_each_seed(fill, published):
    root = fill(experiments=["iid_batchnorm", "noniid_batchnorm", "noniid_renorm"])
    runs = find_runs([root])[0]
    drawing = figures.draw_summary(runs, published, "glyphs")
    theirs, ours = (
        {y: x for line in axes.lines if line.get_marker() == "o" for x, y in [(line.get_xdata(), line.get_ydata()[0])]}
        for axes in drawing.axes
    )
    assert sorted(len(x) for x in theirs.values()) == [1] * 7
    assert sorted(len(x) for x in ours.values()) == [3] * 3
    best = sorted(run.best("val_top1") for run in runs if run.experiment == "noniid_batchnorm")
    assert best in [sorted(x) for x in ours.values()]
    assert texts(drawing).count("no finished run") == 4


def test_a_point_is_as_long_in_both_panels_of_the_summary(fill, published):
    runs = find_runs([fill(top=0.5)])[0]
    theirs, ours = (axes.get_xlim() for axes in figures.draw_summary(runs, published, "glyphs").axes)
    assert theirs[1] - theirs[0] == pytest.approx(ours[1] - ours[0])
    baseline = np.mean([run.best("val_top1") for run in runs if run.experiment == "iid_batchnorm"])
    assert 78.3 - theirs[0] == pytest.approx(baseline - ours[0])


def test_one_hue_for_batch_renorm_and_no_hue_twice_in_a_figure():
    renorm = {hue for (experiment, _), hue in figures.HUES.items() if experiment.endswith("_renorm")}
    assert len(renorm) == 1
    for figure in paper.FIGURES.values():
        hues = [figures.HUES[series] for series in figure.lines]
        assert len(set(hues)) == len(hues)


def test_files_are_written_and_redrawn_alike(fill, published, tmp_path):
    runs = find_runs([fill(experiments=["iid_renorm"], seeds=[0])])[0]
    first, second = (figures.draw_all(runs, published, "glyphs", tmp_path / name) for name in "ab")
    assert sorted(p.name for p in first) == sorted(
        f"{name}.{kind}" for name in ("fig1", "fig2", "fig3", "summary") for kind in ("png", "svg")
    )
    assert all(p.stat().st_size > 5000 for p in first)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
