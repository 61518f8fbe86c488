"""W&B follows the curve: every step once in the newest file, and none of its troubles reach the run."""

import sys
import time
from unittest.mock import Mock

import pytest
import wandb

from batch_renorm.records.folder import Folder
from batch_renorm.running import loggers
from batch_renorm.running.loggers import CurveLogger
from tests.wandb_file import history, offline_files, records

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_service(tmp_path, monkeypatch):
    """W&B's service ends with the test, as it does with a process; one inherited from another process is not used."""
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path}/gone")
    monkeypatch.setitem(loggers.PATIENCE, "offline", 600.0)  # of a busy machine
    monkeypatch.setitem(loggers.PATIENCE, "after an error", 600.0)
    yield
    wandb.teardown()


def logger_of(run, path, step):
    folder = Folder(path)
    folder.write_record(id="id12345")
    return loggers.WandbLogger(run, run.logging.wandb, folder, step, {})


def follow(run, folder, start, stop, status="success"):
    """Steps start + 1 .. stop of a run, as its loggers see them."""
    live = logger_of(run, folder, start)
    for step in range(start + 1, stop + 1):
        for metrics in ({"loss": 1 / step}, {"val_top1": 10.0 * step} if step % 2 == 0 else {}):
            CurveLogger(folder / "curve.csv").log_metrics(metrics, step)
            live.log_metrics(metrics, step)
    live.finalize(status)
    assert not live.thread.is_alive()


def opened(file):
    """The W&B run that a file begins."""
    return [record.run for record in records(file) if record.HasField("run")][-1]


def test_after_a_resume_the_newest_file_has_every_step_once_and_the_key_is_nowhere(made, tmp_path, monkeypatch):
    run = made("logger=offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    follow(run, tmp_path, 0, 5, "failed")
    wandb.teardown()
    # killed after step 5, whose last checkpoint was that of step 4: the curve is rewound, W&B is ahead
    lines = (tmp_path / "curve.csv").read_text().splitlines(keepends=True)
    (tmp_path / "curve.csv").write_text("".join(line for line in lines if not line.startswith("5,")))
    follow(run, tmp_path, 4, 6)
    (newest,) = offline_files(tmp_path)
    rows = history(newest)
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[3][1] == {"loss": 0.25, "val_top1": 40.0}
    assert [step for step, metrics in rows if "val_top1" in metrics] == [2, 4, 6]
    assert {r.run.run_id for r in records(newest) if r.HasField("run")} == {"id12345"}
    metrics = {r.metric.name: r.metric for r in records(newest) if r.HasField("metric")}
    assert metrics["val_top1"].summary.max
    assert metrics["val_top1"].summary.last
    live = opened(newest)
    expected = ("batch-renorm", "noniid_renorm-seed0", "glyphs/noniid_renorm", "train")
    assert (live.project, live.display_name, live.run_group, live.job_type) == expected
    assert len(list((tmp_path / "wandb/superseded").glob("*/*.wandb"))) == 1
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_wandbs_variables_count_as_it_documents_them(made, compose, tmp_path, monkeypatch):
    """An option of the config's own comes before WANDB_PROJECT."""
    given = {"PROJECT": "p", "ENTITY": "e", "NAME": "n", "RUN_GROUP": "g", "TAGS": "a,b"}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert compose("logger=offline", "logger.wandb.project=mine")["logger"]["wandb"]["project"] == "mine"
    run = made("logger=offline")
    assert run.logging.wandb.entity == "e"
    follow(run, tmp_path, 0, 2)
    live = opened(*offline_files(tmp_path))
    assert (live.project, live.display_name, live.run_group) == ("p", "n", "g")
    assert {"noniid_renorm", "a", "b"} <= set(live.tags)


@pytest.mark.parametrize(("asked", "files"), [("dryrun", 1), ("disabled", 0)])
def test_wandbs_own_variable_keeps_a_run_from_the_network_or_off(made, tmp_path, monkeypatch, capfd, asked, files):
    """Without a key: nothing is to be asked of the servers."""
    run = made("logger=wandb")
    monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    follow(run, tmp_path, 0, 2)
    found = offline_files(tmp_path)
    assert len(found) == files
    assert all([step for step, _ in history(file)] == [1, 2] for file in found)
    assert "W&B" not in capfd.readouterr().err


@pytest.mark.parametrize("trouble", ["not installed", "no"])
def test_without_wandb_training_goes_on(made, tmp_path, monkeypatch, capfd, trouble):
    monkeypatch.setattr("wandb.init", Mock(side_effect=RuntimeError("no\nway")))
    if trouble == "not installed":
        monkeypatch.setitem(sys.modules, "wandb", None)
    follow(made("logger=offline"), tmp_path, 0, 3)
    assert capfd.readouterr().err == f"going on without W&B ({trouble}); curve.csv has everything\n"
    assert (tmp_path / "curve.csv").read_text().count("loss") == 3


def test_with_wandb_hanging_training_ends(made, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("wandb.init", lambda **_: time.sleep(1))
    monkeypatch.setitem(loggers.PATIENCE, "offline", 0.1)
    live = logger_of(made("logger=offline"), tmp_path, 0)
    live.log_metrics({"loss": 1.0}, 1)
    live.finalize("success")
    assert "going on without W&B (not done after 0 s" in capfd.readouterr().err
    live.thread.join()


def test_online_nothing_is_sent_twice(made, tmp_path, monkeypatch):
    """W&B's server had more of the run than its last checkpoint covers, less than its curve, or nothing."""
    run, url = made("logger=wandb"), "https://wandb.ai/me/project/runs/id12345"
    monkeypatch.setattr("wandb.login", lambda **_: True)
    for step in (1, 2):
        CurveLogger(tmp_path / "curve.csv").log_metrics({"loss": 1.0}, step)
    for next_step, expected in ((0, [1, 2, 3, 4]), (2, [2, 3, 4]), (4, [4])):
        on_server = Mock(step=next_step, url=url)
        monkeypatch.setattr("wandb.init", Mock(return_value=on_server))
        live = logger_of(run, tmp_path, 2)
        for step in (3, 4):
            live.log_metrics({"loss": 1.0}, step)
        live.finalize("success")
        assert [call.kwargs["step"] for call in on_server.log.call_args_list] == expected
        on_server.finish.assert_called_once_with(exit_code=0)
    assert (tmp_path / "wandb" / "url").read_text().strip() == url  # which the report links to
