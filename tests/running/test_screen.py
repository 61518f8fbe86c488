"""What a person reads: whole words in 80 columns, a line per evaluation, the time left, results on standard output."""

import os
import re
import sys
from types import SimpleNamespace

import pytest

from batch_renorm.running.progress import TimeLeft
from batch_renorm.running.screen import duration, wrapped

STEPS, EVERY = 100, 10


@pytest.fixture
def left():
    due = lambda step, steps: step % EVERY == 0 or step == steps  # noqa: E731
    return TimeLeft(STEPS, SimpleNamespace(every=EVERY, due=due))


def test_time_left_is_that_of_steps_and_of_evaluations(left):
    """An evaluation as long as 200 steps does not count as a step."""
    assert left.after(0) == ""
    for step in range(1, 10):
        left.count(step, 60.0 if step == 1 else 0.5)  # the first step of a process compiles and loads
    assert left.after(9) == "46 s and 10 evaluations left"
    left.count(10, 100.5)
    assert left.after(10) == duration(90 * 0.5 + 9 * 100) + " left"
    left.count(11, 0.5)
    assert left.after(11) == duration(89 * 0.5 + 9 * 100) + " left"


def test_time_left_follows_a_change_of_speed(left):
    for step in [s for s in range(1, 500) if s % EVERY]:
        left.count(step, 1.0 if step < 100 else 2.0)
    assert left.step_seconds == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(41.2, "41 s"), (150, "2 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min"), (90000, "1 day 1 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_lines_break_between_words_and_a_path_stays_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/long/path-with-dashes/" + "x" * 40
    text = wrapped(f"  some words before a place that is far too long for a line: {path}")
    assert path in text.split()
    assert all(len(line) <= 40 for line in text.splitlines() if path not in line)
    assert all(line.startswith("  ") for line in text.splitlines())


def test_a_log_file_has_a_line_with_its_time_for_the_first_step_and_every_evaluation(train_command):
    done = train_command("size.steps=6", "size.evaluate_every=3")
    lines = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)$", done.stderr, re.MULTILINE)
    assert [re.match(r"step (\d) of 6, (val|loss)", line).groups() for line in lines] == [
        ("1", "loss"), ("3", "val"), ("6", "val"),
    ]  # fmt: skip
    assert not re.search(r"[|\r]", done.stderr)  # no bar
    assert "evaluation" in lines[0] or "left" not in lines[0]
    assert lines[1].endswith("left")
    assert not lines[2].endswith("left")
    assert all(len(line) <= 80 for line in done.stderr.splitlines() if "folder" not in line and "/" not in line)
    assert done.stdout.startswith("validation top-1 ")


def test_a_finished_run_tells_its_result_without_loading_torch(train_command, tmp_path):
    first = train_command()
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was loaded')")
    again = train_command(env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
    assert again.stdout == "This run is finished; fresh=true repeats it.\n" + first.stdout
    assert again.stderr == ""
