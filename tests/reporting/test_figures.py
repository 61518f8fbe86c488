"""What is drawn is what was read: the drawing's own lines and texts are checked, not its pixels."""

import json
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from batch_renorm.reporting import compare, paper
from batch_renorm.reporting.runs import find_runs
from batch_renorm.showing import diagnoses, drawings, figures, looks, page, summary

FIG3 = paper.FIGURES["fig3"]


def draw(root, published, scale="glyphs", figure=FIG3):
    runs = find_runs([root])[0]
    return figures.draw_curves(figure, runs, published, scale), runs


def texts(drawing):
    return [t.get_text() for t in drawing.texts + [t for axes in drawing.axes for t in axes.texts]]


def test_side_by_side(fill, published):
    drawing, runs = draw(fill(), published)
    theirs, ours = drawing.axes
    assert theirs.get_ylim() == ours.get_ylim()
    assert theirs.get_ylim()[0] <= 30
    assert theirs.get_ylim()[1] >= 80
    colors = [[to_hex(line.get_color()) for line in axes.lines] for axes in (theirs, ours)]
    assert colors[0] == colors[1]
    assert len(colors[0]) == 5
    renorm = [run for run in runs if run.experiment == "noniid_renorm"]
    assert len(renorm) == 3
    expected = np.mean([run.curve["val_top1"][1] for run in renorm], axis=0)
    np.testing.assert_allclose(ours.lines[-1].get_ydata(), expected)
    np.testing.assert_array_equal(theirs.lines[-1].get_ydata(), published.curves["noniid_renorm", "val_top1"][1])
    band = ours.collections[-1].get_paths()[0].vertices[:, 1]
    seeds = [run.curve["val_top1"][1] for run in renorm]
    assert (band.min(), band.max()) == pytest.approx((np.min(seeds), np.max(seeds)))


def test_the_legend_gives_printed_best_and_final_or_says_that_nothing_was_run(write, published, tmp_path):
    write(tmp_path, "noniid_renorm", 0, {"val_top1": [(100, 50.0), (200, 61.0), (300, 60.0)]})
    write(tmp_path, "noniid_renorm", 1, {"val_top1": [(100, 50.0), (200, 62.0), (300, 63.0)]})
    write(tmp_path, "noniid_batchnorm", 0, {"val_top1": [(100, 2.0), (300, 12.0)]})
    drawing = draw(tmp_path, published)[0]
    assert drawing.axes[1].get_ylim()[0] < 12  # curves of any height end within the axis
    shown = texts(drawing)
    at = shown.index("Batch Renorm")
    assert shown[at + 1 : at + 4] == ["78.5%*", "62.0%", "61.5%"]  # the text's, as in every table
    assert "* 78.5% in the paper's text, which is taken here, 78.6% in its figure 3" in shown
    assert "not run yet" in texts(draw(tmp_path, published, figure=paper.FIGURES["fig2"])[0])


def test_unfinished_seeds_are_drawn_apart_from_the_mean(fill, published):
    root = fill(experiments=["noniid_renorm"], seeds=[0, 1])
    fill(experiments=["noniid_renorm"], seeds=[2], state="running", step=1200)
    drawing, _ = draw(root, published)
    mean, unfinished, ring = drawing.axes[1].lines
    assert (mean.get_xdata()[-1], unfinished.get_xdata()[-1], list(ring.get_xdata())) == (3000, 1200, [1200])
    assert unfinished.get_alpha() < 1
    assert ring.get_marker() == "o"
    assert "faint, to a ring: unfinished" in texts(drawing)


def test_the_summary_tells_of_ends_in_its_title_and_in_its_dots(fill, published):
    ran = ["iid_batchnorm", "iid_renorm", "noniid_batchnorm", "noniid_renorm"]
    runs = find_runs([fill(experiments=ran)])[0]
    drawing = summary.draw_summary(runs, published, "glyphs")
    dots = [[line for line in axes.lines if line.get_marker() == "o"] for axes in drawing.axes]
    theirs, ours = ([list(d.get_xdata()) for d in side if d.get_markerfacecolor() != "white"] for side in dots)
    rings = [[d.get_xdata()[0] for d in side if d.get_markerfacecolor() == "white"] for side in dots]
    assert [len(side) for side in rings] == [1, 1]  # of batchnorm on pairs, which falls
    assert rings[0][0] == pytest.approx(67, abs=0.2)
    assert [len(x) for x in theirs] == [1] * 7
    assert min(theirs)[0] == pytest.approx(55, abs=1)
    ends = {name: [run.final("val_top1") for run in runs if run.experiment == name] for name in ran}
    assert ours == list(ends.values())
    loss = np.mean(ends["iid_batchnorm"]) - np.mean(ends["noniid_batchnorm"])
    assert f"batchnorm ends {loss:.1f} points below" in drawing.get_suptitle()
    assert texts(drawing).count("no finished run") == 3
    left, right = (axes.get_xlim() for axes in drawing.axes)  # a point is as long in both
    assert left[1] - left[0] == pytest.approx(right[1] - right[0])
    assert published.curves[paper.BASELINE][1][-1] - left[0] == pytest.approx(np.mean(ends["iid_batchnorm"]) - right[0])


def test_no_two_lines_of_a_figure_look_alike():
    for figure in paper.FIGURES.values():
        assert len({looks.look(series) for series in figure.lines}) == len(figure.lines)


def test_activations_over_depth_and_steps(write, tmp_path):
    levels = {"/stem.1": 30, "/blocks.10.1": 60, "/blocks.2.1": 90, "": 60}  # in the network's order
    curves = {f"activation_distance{layer}": [(s, v / s) for s in (100, 200, 300)] for layer, v in levels.items()}
    write(tmp_path, "noniid_batchnorm", 0, curves, steps=300)
    drawing = diagnoses.draw_activations(find_runs([tmp_path])[0])
    over, through = drawing.axes
    np.testing.assert_allclose(over.lines[0].get_ydata(), [0.6, 0.3, 0.2])
    np.testing.assert_allclose(through.lines[0].get_ydata(), [0.1, 0.2, 0.3], rtol=1e-6)


def test_files_are_redrawn_alike(fill, published, tmp_path):
    runs = find_runs([fill(experiments=["iid_renorm"], seeds=[0])])[0]
    first, second = (drawings.draw_all(runs, published, "glyphs", tmp_path / name, {}) for name in "ab")
    assert [path.name for path in first] == ["summary.png", "summary.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_page_has_every_curve_and_asks_nothing_of_a_network(write, published, tmp_path):
    for seed, last in enumerate((60.0, 61.0)):
        curves = {"val_top1": [(100, 50.0), (300, last)], "loss": [(100, 2.0)]}
        write(tmp_path, "noniid_renorm", seed, curves, steps=300)
    write(tmp_path, "noniid_batchnorm", 0, {"val_top1": [(100, 48.0)]}, steps=300, step=100, state="running")
    runs = find_runs([tmp_path])[0]
    text = page.page(compare.compare(runs, published, "glyphs", {}), runs, published)
    begin = text.index("[", text.rindex("Plotly.newPlot("))
    lines = json.JSONDecoder().raw_decode(text[begin:])[0]
    ours = {line["name"]: line["y"] for line in lines if line.get("showlegend", True)}
    assert ours["Batch Renorm, mean of 2 seeds"] == [50, 60.5]
    assert ours["Batchnorm, seed 0, running at step 100 of 300"] == [48]
    assert ours["Batch Renorm, non-i.i.d., mean of 2 seeds"] == [2]  # the loss
    papers = [line["y"] for line in lines if line["name"] == "Batch Renorm" and not line.get("showlegend", True)]
    assert round(max(papers[-1]), 1) == 78.6
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text)
