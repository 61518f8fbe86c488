"""Kills at random moments leave no trace; scripts/chaos.py is the same with more of them."""

import json
import subprocess
import sys

import pytest

from batch_renorm.records.curve import read_rows
from tests.conftest import ROOT
from tests.wandb_file import history, offline_files


@pytest.mark.slow
def test_a_run_that_is_killed_and_started_again_is_the_run_that_was_not(tmp_path):
    arguments = ["--kills=2", "--ranks=1", "--steps=12", "--every=4", "--seed=1", "--stores=0", f"--out={tmp_path}"]
    arguments.append(f"--keep={tmp_path / 'kept'}")
    done = subprocess.run([sys.executable, "scripts/chaos.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "chaos.json").read_text())["results"]
    assert result["killed in"] == {"checkpoint": 1, "evaluation": 1}
    assert result["starts"] == 3
    assert result["rows"] > 100
    for fault in ("rows lost", "rows doubled", "rows changed"):
        assert result[fault] == 0, fault
    assert result["largest difference"] == 0
    assert "Nothing was lost, doubled or changed." in (tmp_path / "README.md").read_text()
    killed = tmp_path / "kept/1/killed"
    logged = [(step, name) for file in offline_files(killed) for step, row in history(file) for name in row]
    assert len(logged) == len(set(logged))
    assert {row[:2] for row in read_rows(killed / "curve.csv")} <= set(logged)


@pytest.mark.slow
def test_a_store_that_is_killed_and_started_again_is_the_store_that_was_not(tmp_path):
    arguments = ["--kills=0", "--stores=3", "--images=240", f"--out={tmp_path}"]
    done = subprocess.run([sys.executable, "scripts/chaos.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "chaos.json").read_text())["stores"]
    assert result["kills"] == 3
    assert result["killed by"] == {"SIGKILL": 2, "SIGTERM": 1}
    assert result["starts"] == 3 + result["stores"]
    assert result["files"] > 20
    assert result["files that differ"] == 0
    assert "Nothing was lost, doubled or changed." in (tmp_path / "README.md").read_text()
