"""scripts/benchmark.py in a tiny form: what it compares and writes, not how fast that is."""

import json

import pytest

from scripts.benchmarks import measure


def benchmark(run_script, file, *arguments):
    code, out, err = run_script("scripts/benchmark.py", *arguments, "--device", "cpu", "--json", file)
    assert code == 0, err
    result = json.loads(file.read_text())
    assert {"date", "command", "commit", "device", "threads", "load", "versions"} <= set(result)
    return result, out


def test_ratios_are_those_of_a_round():
    """A machine that becomes four times as slow changes every time and no ratio."""
    seconds = {"nn.BatchNorm2d": [1.0, 2.0, 4.0, 4.0], "layer": [1.5, 3.0, 6.0, 8.0]}
    ratios = measure.ratios(seconds)
    assert ratios["nn.BatchNorm2d"] == {"median": 1.0, "spread": 0.0}
    assert ratios["layer"] == {"median": 1.5, "spread": 0.0625}  # the quartiles of 1.5, 1.5, 1.5, 2 are 1.5 and 1.625


def test_norm(run_script, tmp_path):
    small = ["--rounds", "2", "--milliseconds", "0.1", "--widest", "5"]
    result, text = benchmark(run_script, tmp_path / "out.json", "norm", *small)
    assert result["part"] == "norm"  # names the default file
    assert [(row["dtype"], row["layout"]) for row in result["rows"]] == [
        ("float32", "contiguous"), ("float32", "channels_last"),
        ("bfloat16", "contiguous"), ("bfloat16", "channels_last"),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["shape"] == [32, 128, 5, 5]
        assert list(row["ratios"]) == ["nn.BatchNorm2d", "whole batch", "groups of 16", "groups of 4", "plain autograd"]
    assert "geometric mean" in text


def test_step(run_script, tmp_path):
    small = ["--network", "glyphs", "--batch", "4", "--groups", "0", "2", "--rounds", "2"]
    result, text = benchmark(run_script, tmp_path / "out.json", "step", *small)
    assert result["part"] == "step-glyphs"
    assert set(result["ratios"]) == set(result["images_per_second"]) == {"nn.BatchNorm2d", "whole batch", "groups of 2"}
    assert "images/s" in text


@pytest.mark.slow
def test_data(run_script, tmp_path):
    result, text = benchmark(run_script, tmp_path / "out.json", "data", "--count", "4", "--rounds", "1")
    assert result["files"]["images"] == 4
    assert result["times_the_recipe"]["torchvision's recipe"] == 1
    assert {"from folders", "from a store"} <= set(result["times_the_recipe"])
    assert "images/s on one core" in text
