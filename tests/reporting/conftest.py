"""Run folders as a training run leaves them, with curves in the shape of the paper's."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from batch_renorm.records.naming import as_name
from batch_renorm.reporting import paper
from tests.conftest import ROOT


def write_run(root, experiment, seed, curves, *, scale="glyphs", steps=3000, step=None, state="finished", config=None):
    """curves: metric -> [(step, value), ...]; config: more of it."""
    folder = Path(root) / scale / experiment / f"seed{seed}"
    folder.mkdir(parents=True)
    config = {"scale": scale, "experiment": experiment, "seed": seed, "norm": {"alpha": 0.02}, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [(s, m, v) for m, points in curves.items() for s, v in points]
    lines.sort(key=lambda line: line[0])
    text = "".join(f"{s},{m},{v}\n" for s, m, v in lines)
    (folder / "curve.csv").write_text("step,metric,value\n" + text)
    info = {"state": state, "step": steps if step is None else step, "steps": steps, "wall_seconds": 240.0}
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def paper_shaped(published, experiment, seed, *, top=0.85, steps=3000, upto=1.0, points=30):
    """Noisy copies of the paper's curves, their accuracies and steps scaled."""
    noise = np.random.default_rng([seed, len(experiment)])
    offset = noise.normal(0, 0.4)
    at = np.linspace(0, 1, points + 1)[1:]
    at = at[at <= upto]
    curves = {}
    for (name, metric), (s, v) in published.curves.items():
        if name == experiment:
            values = top * np.interp(at, s / 140_000, v) + offset + noise.normal(0, 0.25, len(at))
            values[at < s[0] / 140_000] *= 0.6
            curves[metric] = [(int(steps * a), round(float(x), 3)) for a, x in zip(at, values, strict=True)]
    curves["loss"] = [(int(steps * a), 6 - 5 * a) for a in at]
    return curves


def write_all(root, published, *, experiments=tuple(paper.EXPERIMENTS), seeds=(0, 1, 2), top=0.85, **run):
    steps = run.get("steps", 3000)
    upto = run.get("step", steps) / steps
    for experiment in experiments:
        for seed in seeds:
            curves = paper_shaped(published, experiment, seed, top=top, steps=steps, upto=upto)
            write_run(root, experiment, seed, curves, **run)


@pytest.fixture(scope="session")
def published():
    return paper.load_published()


@pytest.fixture(scope="session")
def report_script():
    """scripts/report.py as a module, so that all tests share the configs that it composes."""
    spec = importlib.util.spec_from_file_location("report_script", ROOT / "scripts/report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def report(report_script, monkeypatch, tmp_path, capsys):
    """report(*arguments): scripts/report.py's status, output and errors, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def report(*arguments):
        code = 0
        try:
            with report_script.explained():
                code = report_script.main(list(arguments))
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return report


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are drawn and not saved, which takes most of the time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


@pytest.fixture
def write():
    return write_run


@pytest.fixture
def trained(compose, tmp_path):
    """trained(*overrides, curve=...) writes a finished run of val_top1 as train.py -m leaves it, with its config."""

    def trained(*overrides, curve=((100, 50.0), (200, 60.0)), root=tmp_path / "runs", **run):
        config = compose(*overrides)
        run = {"steps": config["size"]["steps"], **run}
        return write_run(root, as_name(",".join(overrides)), config["seed"], {paper.VAL: curve}, config=config, **run)

    return trained


@pytest.fixture
def fill(tmp_path, published):
    """fill(experiments=..., seeds=..., ...) writes paper-shaped runs under tmp_path/runs and returns it."""

    def fill(**options):
        write_all(tmp_path / "runs", published, **options)
        return tmp_path / "runs"

    return fill
