"""What a person reads: whole words in 80 columns, a line per evaluation, the time left, results on standard output."""

import os
import re
import sys
import time
from types import SimpleNamespace

import pytest

from batch_renorm.running import progress, screen
from batch_renorm.running.progress import Progress
from batch_renorm.running.screen import duration, wrapped


def test_time_left_is_at_the_mean_speed_with_evaluations():
    """And without the first step of a process, which also loads and compiles."""
    shown = Progress(SimpleNamespace(size=SimpleNamespace(steps=100)), talkative=True)
    assert shown.seconds_left(1, 50.0) is None
    shown.begin = (1, 60.0)
    assert shown.seconds_left(1, 60.0) is None
    assert shown.seconds_left(11, 60 + 10 * 0.5 + 100) == pytest.approx(89 * 10.5)


def test_a_long_evaluation_says_how_far_it_is(monkeypatch, capfd):
    times = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times))
    batches = Progress(SimpleNamespace(), talkative=True).watch(range(6), 6)
    assert list(batches) == [0, 1, 2, 3, 4, 5]
    lines = [line.partition("  ")[2] for line in capfd.readouterr().err.splitlines()]
    assert lines == ["evaluating, batch 2 of 6, 2 min left", "evaluating, batch 4 of 6, 1 min left"]
    assert list(Progress(SimpleNamespace(), talkative=False).watch(range(6), 6)) == [0, 1, 2, 3, 4, 5]
    assert capfd.readouterr().err == ""


def test_what_is_waited_for_is_said(monkeypatch, capfd):
    monkeypatch.setattr(screen, "SILENCE", 0.05)
    with screen.waiting("nothing"):
        pass
    with screen.waiting("Godot"):
        time.sleep(0.5)
    assert capfd.readouterr().err == "waiting for Godot\n"


def test_a_line_that_nobody_reads_is_no_error():
    """As in `train.py 2>&1 | head -1`; the rest of a buffer is no error at the end, either."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        for _ in range(3):
            screen.print_line("some words", stream)
    screen.print_line("closed", stream)


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
    assert "left" not in lines[0]
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
