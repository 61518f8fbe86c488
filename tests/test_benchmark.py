"""scripts/benchmark.py in a tiny form: sane numbers, not speeds."""

import json
import platform
import statistics

import pytest

from tests.conftest import ROOT, run_forked


def benchmark(tmp_path, *arguments):
    file = tmp_path / "out.json"
    done = run_forked(["scripts/benchmark.py", *arguments, "--device", "cpu", "--json", str(file)], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert result["freed_memory_kept"] is (platform.libc_ver()[0] == "glibc")
    assert {"date", "command", "commit", "device", "threads", "load", "versions"} <= set(result)
    return result, done.stdout


def assert_ratios(row, names):
    assert set(row["ratios"]) == {"nn.BatchNorm2d", *names}
    assert row["ratios"]["nn.BatchNorm2d"] == {"median": 1.0, "spread": 0.0}
    assert all(0.05 < ratio["median"] < 200 and ratio["spread"] >= 0 for ratio in row["ratios"].values())


@pytest.mark.parametrize("inference", [[], ["--inference"]])
def test_norm(tmp_path, inference):
    names = ["whole batch", "groups of 16", "groups of 4", "plain autograd"]
    result, text = benchmark(tmp_path, "norm", "--rounds", "2", "--milliseconds", "0.1", "--widest", "5", *inference)
    assert result["part"] == ("inference" if inference else "norm")  # names the default file
    assert [(row["dtype"], row["layout"]) for row in result["rows"]] == [
        ("float32", "contiguous"), ("float32", "channels_last"),
        ("bfloat16", "contiguous"), ("bfloat16", "channels_last"),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["shape"] == [32, 128, 5, 5]
        assert_ratios(row, names)
        passes, size = 2 if inference else 8, 32 * 128 * 5 * 5 * (2 if row["dtype"] == "bfloat16" else 4)
        seconds = passes * size / result["copy_bytes_per_second"]
        assert row["floor_milliseconds"] == pytest.approx(1000 * seconds)
    assert "geometric mean" in text


def test_every_norm_of_inception(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from benchmarks.norm import FIVE, inception_norms

    counts = inception_norms()
    assert counts.total() == 96
    assert set(FIVE) <= set(counts)


@pytest.mark.slow
def test_step(tmp_path):
    small = ["--network", "glyphs", "--batch", "4", "--groups", "0", "2", "--rounds", "3", "--parts"]
    result, text = benchmark(tmp_path, "step", *small)
    (row,) = result["rows"]
    assert_ratios(row, ["whole batch", "groups of 2"])
    assert all(1 < speed["median"] < 1e6 for speed in row["images_per_second"].values())
    assert all(50 < mib < 10_000 for mib in row["peak_mib"].values())
    assert "images/s" in text
    assert result["part"] == "step-glyphs"
    assert list(row["milliseconds"]["whole batch"]) == [
        *("drawing", "forward", "backward", "update", "mu and sigma", "average")
    ]
    assert all(0 < ms < 60_000 for parts in row["milliseconds"].values() for ms in parts.values())


@pytest.mark.slow
def test_aims(tmp_path):
    small = ["--network", "glyphs", "--batch", "4", "--widest", "5", "--rounds", "2", "--no-memory"]
    result, text = benchmark(tmp_path, "aims", *small)
    aims = {row["what"]: row for row in result["aims"]}
    assert len(aims) == 12
    assert aims["layer, channels_last, groups of 4"]["aim"] == 1.7
    assert aims["step of glyphs, contiguous, eager, groups of 4"]["aim"] == 1.05
    for name, row in aims.items():
        assert row["holds"] == (row["ratio"] <= row["aim"])
        assert name in text
    shapes = [row["ratios"]["whole batch"]["median"] for row in result["norm"]["rows"] if row["layout"] == "contiguous"]
    assert aims["layer, contiguous, whole batch"]["ratio"] == pytest.approx(statistics.geometric_mean(shapes))
    assert len(shapes) == 2


@pytest.mark.slow
def test_data(tmp_path):
    result, text = benchmark(tmp_path, "data", "--count", "4", "--rounds", "1")
    assert result["files"]["images"] == 4
    assert result["times_the_recipe"].pop("torchvision's recipe") == 1
    assert {"from folders", "from a store"} <= set(result["times_the_recipe"])
    assert all(0.05 < times < 100 for times in result["times_the_recipe"].values())
    assert "images/s on one core" in text


@pytest.mark.slow
def test_limits_on_paper(tmp_path):
    result, text = benchmark(tmp_path, "limits", "--cores", "16")
    assert "on paper" in result["subject"]
    assert "no GPU" in result["computed"]
    step = result["step"]
    assert step["norms"]["calls"] == 6 * 96
    # 34.3 GFLOP an image, as torch's own counter has it for a step with nn.BatchNorm2d
    assert step["convolutions"]["flops"] == pytest.approx(34.3e9 * 224, rel=0.03)
    assert step["norms"]["bytes"] == pytest.approx(8 * 2 * 8.97e6 * 224, rel=0.02)
    network = sum(kind["seconds"] for kind in step.values())
    assert result["limits"]["the network, on the fullest rank"] == pytest.approx(network)
    assert result["longest"] == "preparing the images, on all cores"  # 16 cores are too few
    assert result["images_per_second"] == pytest.approx(16 * 471)
    assert result["busy"] == pytest.approx(6.25 / 7)
    assert 0 < result["evaluation"]["share"] < 1
    assert "nothing is measured" in text
