"""Run folders as a training run leaves them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from batch_renorm.records.naming import as_name
from batch_renorm.reporting import paper
from scripts.report import explained, main


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


@pytest.fixture(scope="session")
def published():
    return paper.load_published()


@pytest.fixture
def report(monkeypatch, tmp_path, capsys):
    """report(*arguments): the output and errors of scripts/report.py, in an empty working directory.

    It is imported, so that all tests share the configs that it composes.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def report(*arguments, status=0):
        code = 0
        try:
            with explained():
                code = main(list(arguments))
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert code == status, err
        return out, err

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
    """fill(...) writes runs whose curves have the paper's shape, a point apart by seed, and returns their folder."""

    def fill(experiments=tuple(paper.EXPERIMENTS), seeds=(0, 1, 2), top=0.85, steps=3000, step=None, **run):
        at = np.arange(1, 31) * steps // 30
        at = at[at <= (step or steps)]
        for experiment in experiments:
            curves = {metric: curve for (name, metric), curve in published.curves.items() if name == experiment}
            for seed in seeds:
                ours = {metric: top * np.interp(at / steps, s / 140_000, v) + seed for metric, (s, v) in curves.items()}
                points = {metric: [*zip(at.tolist(), v.tolist(), strict=True)] for metric, v in ours.items()}
                write_run(tmp_path / "runs", experiment, seed, points, steps=steps, step=step, **run)
        return tmp_path / "runs"

    return fill
