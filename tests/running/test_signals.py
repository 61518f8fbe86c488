"""Being asked to stop: a checkpoint at a step boundary, a status that says so, and the same run afterwards."""

import os
import signal
import subprocess
import sys
import time

import pytest

from batch_renorm.running.checkpoints import checkpoints, step_of
from tests.conftest import ROOT, TINY
from tests.running.checkpoint_files import curve, final_state
from tests.running.forked import fit_in_forks
from tests.running.test_resume import assert_bit_equal

LONG = ["size.steps=400", "size.evaluate_every=150"]
SHORT = ["size.steps=40", "size.evaluate_every=16"]


def started(folder, *overrides, steps=3):
    """train.py in its own process group, once it has taken a few steps."""
    command = [sys.executable, "train.py", *TINY, *overrides, f"folder={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (folder / "curve.csv").exists() or (folder / "curve.csv").read_text().count("loss") < steps:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_so(tmp_path, number, status):
    """To the whole group, as a terminal and a scheduler send it: the loader process must not die of it."""
    process = started(tmp_path, *LONG, "trainer.loader_processes=1")
    os.killpg(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == status, err
    (checkpoint,) = checkpoints(tmp_path)
    assert 3 <= step_of(checkpoint) < 150
    name = signal.Signals(number).name
    assert f"stopped by {name} after step {step_of(checkpoint)} of 400; the same command goes on" in err
    assert "Traceback" not in err
    record = (tmp_path / "run.json").read_text()
    assert '"state": "stopped"' in record
    assert f'"reason": "{name}"' in record


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    process = started(tmp_path, *LONG, "size.evaluate_every=1")  # most of the time far from a step's end
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert process.returncode == -signal.SIGINT  # which a shell calls 130


@pytest.mark.slow
def test_two_ranks_stop_at_one_step_though_one_has_heard_and_go_on_bit_for_bit(train_command, compose, tmp_path):
    ranks = "trainer.devices=2"
    config = compose(*TINY, *SHORT, ranks)
    fit_in_forks({key: value for key, value in config.items() if key != "fresh"}, tmp_path / "whole", 2)
    process = started(tmp_path / "cut", *SHORT, ranks, steps=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it; the ranks get it once, from the first process
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert step_of(checkpoints(tmp_path / "cut")[0]) not in (16, 32, 40)
    again = train_command(*SHORT, ranks, folder="cut")
    assert "resuming at step" in again.stderr
    assert_bit_equal(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
