"""The page is one file that needs no network and has the curves that were read."""

import json
import re

from batch_renorm.reporting import compare
from batch_renorm.reporting.runs import find_runs
from batch_renorm.showing import page


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
