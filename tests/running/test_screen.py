"""What a person reads: whole words in 80 columns, a line per evaluation, the time left, results on standard output."""

import os
import re
import time
from types import SimpleNamespace

import pytest

from batch_renorm import screen
from batch_renorm.running.progress import Progress
from batch_renorm.screen import wrapped
from batch_renorm.training.evaluation import watched


def test_time_left_is_at_the_mean_speed_with_evaluations():
    """And without the first step of a process, which also loads and compiles."""
    shown = Progress(SimpleNamespace(size=SimpleNamespace(steps=100)), talkative=True)
    assert shown.seconds_left(1, 50.0) is None
    shown.begin = (1, 60.0)
    assert shown.seconds_left(1, 60.0) is None
    assert shown.seconds_left(11, 60 + 10 * 0.5 + 100) == pytest.approx(89 * 10.5)


def test_what_is_waited_for_is_said(monkeypatch, capfd):
    monkeypatch.setattr(screen, "SILENCE", 0.05)
    with screen.waiting("nothing"):
        pass
    with screen.waiting("Godot"):
        time.sleep(0.5)
    assert capfd.readouterr().err == "waiting for Godot\n"


def test_a_long_evaluation_says_how_far_it_is(capfd):
    assert list(watched(range(3), quiet=60)) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    assert list(watched(range(3))) == [0, 1, 2]
    assert "evaluating:   0%" in capfd.readouterr().err


def test_a_line_that_nobody_reads_is_no_error():
    """As in `train.py 2>&1 | head -1`; the rest of a buffer is no error at the end, either."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        for _ in range(3):
            screen.print_line("some words", stream)
    screen.print_line("closed", stream)


def test_lines_break_between_words_and_a_path_stays_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/long/path-with-dashes/" + "x" * 40
    text = wrapped(f"  some words before a place that is far too long for a line: {path}")
    assert path in text.split()
    assert all(len(line) <= 40 for line in text.splitlines() if path not in line)
    assert all(line.startswith("  ") for line in text.splitlines())


def test_a_log_file_has_a_line_for_the_first_step_and_every_evaluation(train_command):
    done = train_command("size.steps=6", "size.evaluate_every=3")
    lines = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)$", done.stderr, re.MULTILINE)
    assert [re.match(r"step (\d) of 6, (val|loss)", line).groups() for line in lines] == [
        ("1", "loss"), ("3", "val"), ("6", "val"),
    ]  # fmt: skip
    assert "\r" not in done.stderr
    assert "left" not in lines[0]
    assert lines[1].endswith("left")
    assert not lines[2].endswith("left")
    assert all(len(line) <= 80 for line in done.stderr.splitlines() if "folder" not in line and "/" not in line)


def test_a_terminal_has_one_line_that_changes_and_one_for_each_evaluation(capfd):
    latest, evaluation = {"loss": 1.0, "val_top1": 50.0}, SimpleNamespace(due=lambda step, steps: step == 2)
    run = SimpleNamespace(size=SimpleNamespace(steps=2), evaluation=evaluation, training=SimpleNamespace(latest=latest))
    shown = Progress(run, talkative=True)
    shown.terminal = True
    for step in (0, 1):
        shown.on_train_batch_end(None, None, None, SimpleNamespace(last=True, step=step), 0)
    first, second, rest = re.split(r"\r\x1b\[K|\n", capfd.readouterr().err)[1:]
    assert (first, second, rest) == ("step 1 of 2, loss 1.000", "step 2 of 2, val 50.0%, loss 1.000", "")
