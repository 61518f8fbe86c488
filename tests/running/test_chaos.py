"""A run that is killed at any moments, and started again each time, is the run that nothing disturbed."""

import random
import signal
import time

import pytest

from batch_renorm.records.curve import read_rows
from tests.conftest import TINY, Forked, script
from tests.running.runs import assert_same_run
from tests.wandb_file import history, offline_files

EVERY, KILLS = 3, 4


def start(folder):
    run = [*TINY, "data.labels=24", "logger=offline", "size.steps=24", f"size.evaluate_every={EVERY}"]
    return Forked(script, "train.py", *run, f"folder={folder}")


def last_step(folder):
    return max((row[0] for row in read_rows(folder / "curve.csv")[-60:]), default=0)


@pytest.mark.slow
def test_kills_at_random_moments_lose_double_and_change_nothing(tmp_path):
    """By turns at any moment of a run's first half, and around an evaluation, its checkpoint and its record."""
    undisturbed, killed, chance, kills = tmp_path / "undisturbed", tmp_path / "killed", random.Random(0), 0
    Forked(time.sleep, 0).ended()  # starts the server of forks, whose imports would count as the run's time
    began = time.monotonic()
    assert start(undisturbed).ended() == 0
    half = (time.monotonic() - began) / 2
    for attempt in range(KILLS):
        process, reached = start(killed), last_step(killed)
        if attempt % 2:
            while process.process.is_alive() and ((now := last_step(killed)) <= reached or now % EVERY):
                time.sleep(0.001)
        process.process.join(chance.uniform(0, 0.3 if attempt % 2 else half))
        kills += process.process.is_alive()
        process.signal(signal.SIGKILL)
        process.ended(0)
    assert kills > KILLS / 2, "the run was over before it could be killed"
    last = start(killed)
    assert last.ended() == 0, last.text("err")
    assert_same_run(killed, undisturbed)
    logged = [(step, name) for file in offline_files(killed) for step, row in history(file) for name in row]
    assert len(logged) == len(set(logged))  # W&B gets each number once, too
    assert {row[:2] for row in read_rows(killed / "curve.csv")} <= set(logged)
