"""Being asked to stop: a checkpoint at a step boundary, a status that says so, and the same run afterwards."""

import json
import signal
import time

import pytest

from batch_renorm.running.checkpoints import checkpoints, step_of
from tests.conftest import TINY, Forked, script
from tests.running.runs import assert_same_run, train_in_forks, wait_for_rows

LONG = [*TINY, "size.steps=400", "size.evaluate_every=150"]
SHORT = [*TINY, "size.steps=16", "size.evaluate_every=12", "trainer.devices=2"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_says_so(tmp_path, number, status):
    """To the whole group, as a terminal and a scheduler send it: the loader process must not die of it."""
    process = Forked(script, "train.py", *LONG, "trainer.loader_processes=1", f"folder={tmp_path}/run")
    wait_for_rows(tmp_path / "run", 3, process)
    process.signal(number)
    assert process.ended() == status, process.text("err")
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert 1 <= step_of(checkpoint) < 150
    name = signal.Signals(number).name
    stopped = f"stopped by {name} after step {step_of(checkpoint)} of 400; the same command goes on"
    assert stopped in process.text("err")
    assert "Traceback" not in process.text("err")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["state"], record["reason"]) == ("stopped", name)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    """Most of the time far from a step's end."""
    process = Forked(script, "train.py", *LONG, "size.evaluate_every=1", f"folder={tmp_path}/run")
    wait_for_rows(tmp_path / "run", 3, process)
    while process.process.is_alive():
        process.signal(signal.SIGINT)
        time.sleep(0.002)
    assert process.ended() == -signal.SIGINT  # which a shell calls 130


@pytest.mark.slow
def test_two_ranks_stop_at_one_step_though_one_has_heard_and_go_on_bit_for_bit(compose, tmp_path):
    """Plain python, which starts a process for each rank, with its own imports."""
    train_in_forks(compose(*SHORT), tmp_path / "whole", 2)
    process = Forked(script, "train.py", *SHORT, f"folder={tmp_path}/cut")
    wait_for_rows(tmp_path / "cut", 2, process)
    process.signal(signal.SIGINT)  # as a terminal sends it; the ranks get it once, from the first process
    assert process.ended() == 130, process.text("err")
    reached = step_of(checkpoints(tmp_path / "cut")[0])
    assert reached not in (12, 16)
    train_in_forks(compose(*SHORT), tmp_path / "cut", 2)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
