"""A run that is killed at any moments, and started again each time, is the run that nothing disturbed."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
import torch

from batch_renorm.records.curve import read_rows
from batch_renorm.running.checkpoints import checkpoints
from tests.conftest import FORKS, TINY, forked
from tests.running.checkpoint_files import curve
from tests.wandb_file import history, offline_files

EVERY = 3
RUN = [*TINY, "logger=offline", "size.steps=24", f"size.evaluate_every={EVERY}"]
KILLS = 6


def in_its_own_session(*arguments):
    """So that a kill takes the processes that the run has started, too."""
    os.setsid()
    forked(*arguments)


def start(folder):
    out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
    command = ["train.py", *RUN, f"folder={folder}"]
    process = FORKS.Process(target=in_its_own_session, args=(command, dict(os.environ), out, err))
    process.start()
    return process


def wait_for_evaluation(process, folder):
    """Until a new step is reached at which a run evaluates, writes a checkpoint and changes its record."""
    reached = last_step(folder)
    while process.exitcode is None and ((now := last_step(folder)) <= reached or now % EVERY):
        time.sleep(0.001)


def last_step(folder):
    return max((row[0] for row in read_rows(folder / "curve.csv")[-60:]), default=0)


def everything(folder):
    """Weights, mu, sigma, their average and the optimiser's state in the last checkpoint."""
    loaded = torch.load(checkpoints(folder)[0], weights_only=True)
    return loaded["state_dict"], [optimizer["state"] for optimizer in loaded["optimizer_states"]]


@pytest.mark.slow
def test_kills_at_random_moments_lose_double_and_change_nothing(tmp_path):
    """By turns at any moment of a run's first half, and around an evaluation and its checkpoint."""
    undisturbed, killed, chance, kills = tmp_path / "undisturbed", tmp_path / "killed", random.Random(0), 0
    began = time.monotonic()
    process = start(undisturbed)
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    while True:
        process = start(killed)
        if kills < KILLS:
            if kills % 2:
                wait_for_evaluation(process, killed)
                process.join(chance.uniform(0, 0.3))
            else:
                process.join(chance.uniform(0, seconds / 2))
            if process.exitcode is None:
                process.kill()
                with suppress(ProcessLookupError):  # it was too young for a session of its own
                    os.killpg(process.pid, signal.SIGKILL)
                process.join()
                kills += 1
                continue
        process.join()
        assert process.exitcode == 0, killed.with_suffix(".err").read_text()
        break
    assert kills > KILLS / 2, "the run was over before it could be killed"
    assert curve(killed) == curve(undisturbed)
    torch.testing.assert_close(everything(killed), everything(undisturbed), rtol=0, atol=0)
    logged = [(step, name) for file in offline_files(killed) for step, row in history(file) for name in row]
    assert len(logged) == len(set(logged))  # W&B gets each number once, too
    assert {row[:2] for row in read_rows(killed / "curve.csv")} <= set(logged)
