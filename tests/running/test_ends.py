"""It always ends: whatever fails, at whatever moment, the processes of a run end, with a status that says why."""

import time
from pathlib import Path

import pytest

from batch_renorm.data.glyphs import Glyphs
from batch_renorm.errors import TransientReadError, UserError
from batch_renorm.records.folder import Folder
from batch_renorm.running import checkpoints, fitting
from batch_renorm.running.run import train
from batch_renorm.training.module import Training
from tests.conftest import TINY
from tests.running.runs import in_forks

MOMENTS = {
    "a training image": (Glyphs, "fetch", lambda source, split, *_: split == "train"),
    "a validation image": (Glyphs, "fetch", lambda source, split, *_: split == "val"),
    "labels, while the run is made": (Glyphs, "labels", None),
    "the start": (fitting.AfterStep, "on_train_start", None),
    "a step": (Training, "training_step", None),
    "a row": (fitting.CurveLogger, "log_metrics", None),
    "a checkpoint": (checkpoints.AtomicCheckpointIO, "save_checkpoint", None),
    "the record": (Folder, "write_record", lambda folder, **entries: entries.get("step")),
    "the end": (fitting.AfterStep, "on_train_end", None),
}
LATE = {"the record", "the end"}  # another rank may have finished
ON_RANK_0 = {"a row", "a checkpoint", "the record"}
CASES = [(moment, 2, 1, UserError, 2) for moment in MOMENTS]
CASES += [(moment, 1, processes, UserError, 2) for moment in list(MOMENTS)[:2] for processes in (0, 1)]
CASES += [("a training image", 1, 1, TransientReadError, 75), ("a validation image", 2, 1, TransientReadError, 75)]


def train_and_fail(world, config, moment, error):
    """Train, but fail at a moment, on the last rank that comes there."""
    owner, name, condition = MOMENTS[moment]
    plain = getattr(owner, name)

    def failing(*arguments, **options):
        if condition is None or condition(*arguments, **options):
            raise error
        return plain(*arguments, **options)

    if world.rank == (0 if moment in ON_RANK_0 else world.ranks - 1):
        setattr(owner, name, failing)
    train(config)


def left_behind(group):
    """The living processes of a process group."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(") ")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            yield path.parent.name


@pytest.mark.parametrize(("moment", "ranks", "processes", "error", "status"), CASES)
def test_a_failure_ends_the_processes_of_a_run_with_its_status(
    compose, tmp_path, moment, ranks, processes, error, status
):
    """The line is printed once; what another rank notices of it is status 1, or the same."""
    config = compose(*TINY, "data.labels=24", f"folder={tmp_path}/run", f"trainer.loader_processes={processes}")
    begin, groups = time.monotonic(), []
    statuses, _, err = in_forks(train_and_fail, ranks, config, moment, error("a thing is broken"), started=groups)
    assert max(statuses) == status
    assert moment in LATE or 0 not in statuses
    assert err.count("error: ") == 1, err
    assert "Traceback" not in err
    while alive := [pid for group in groups for pid in left_behind(group)]:
        assert time.monotonic() < begin + 60, alive
        time.sleep(0.1)
