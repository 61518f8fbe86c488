"""Files that are whole or not there, and folders with one writer, which ends with its process."""

import multiprocessing
import os
import time
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from batch_renorm import durable


def hold(folder, ready):
    with durable.only_writer(folder, "the folder", "wait"):
        ready.set()
        time.sleep(3600)


@contextmanager
def in_use_by_another(folder):
    """A process that holds a folder, until the block ends or it is killed."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready))
    process.start()
    ready.wait()
    try:
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(durable, "GRACE", 0.1)


def test_a_second_writer_hears_who_the_first_is_and_a_killed_one_holds_nothing(tmp_path):
    with in_use_by_another(tmp_path) as process:
        for _ in range(2):  # asking leaves the lock as it is
            words = rf"the run {tmp_path} is in use by process {process.pid} on \S+ since 2"
            with pytest.raises(ValueError, match=words), durable.only_writer(tmp_path, "the run", "wait"):
                pass
        process.kill()
        process.join()
        assert (tmp_path / durable.LOCK).exists()
        with durable.only_writer(tmp_path, "the run", "wait"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_processes_that_a_writer_starts_do_not_hold_its_folder(tmp_path):
    """Loader processes and workers, forked, may outlive a killed writer by a moment."""
    context = multiprocessing.get_context("fork")
    with durable.only_writer(tmp_path, "the run", "wait"):
        child = context.Process(target=time.sleep, args=(3600,))
        child.start()
    with durable.only_writer(tmp_path, "the run", "wait"):
        child.kill()
        child.join()


def test_a_file_system_without_locks_is_told_of_and_used(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(95, os.strerror(95))))
    with durable.only_writer(tmp_path, "the run", "wait"):
        pass
    assert f"{tmp_path} is on a file system without locks" in capfd.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    durable.write_text(path, "old")

    def fails():
        with durable.whole(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
    with durable.whole(path) as first, durable.whole(path) as second:
        assert first != second  # two that write at once do not write into each other
        first.write_text("1")
        second.write_text("2")


def test_content_is_durable_before_it_has_its_name(tmp_path, monkeypatch):
    """A rename that a power cut leaves before the content would be an empty file."""
    system = Mock(wraps=os)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, getattr(system, name))
    durable.write_text(tmp_path / "a.json", "x")
    assert [call[0] for call in system.mock_calls] == ["fsync", "replace", "fsync"]  # the last is of the folder
