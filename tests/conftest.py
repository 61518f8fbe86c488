"""Shared by all tests: the shipped configs, shrunk, and runs of them."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

os.environ["OMP_NUM_THREADS"] = "1"  # for other processes; now, because a module's fixture may start the first of them

ROOT = Path(__file__).parent.parent

TINY = [
    "logger=csv",
    "data.labels=40",
    "data.val_images=2",
    "size.workers=2",
    "size.steps=2",
    "size.evaluate_every=2",
    "size.train_sample=40",
    "trainer.log_every=1",
    "trainer.accelerator=cpu",
]
"""Overrides that make any glyphs run a matter of a second and change nothing else."""


def pytest_collection_modifyitems(items):
    """First those that mostly wait, for SLURM, then the slow ones: at the end one would keep a process waiting."""
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.get_closest_marker("slow") is None))


@pytest.fixture(autouse=True)
def one_thread():
    """Tests run side by side; one thread each is fastest."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glyph_options():
    """The shipped embedded data set with fewer labels."""
    options = yaml.safe_load((ROOT / "configs/data/glyphs.yaml").read_text())
    return {key: value for key, value in options.items() if key != "_target_"} | {"labels": 40}


@pytest.fixture
def compose():
    """Compose the shipped configs with overrides, as train.py does."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from batch_renorm.running.cli import as_hydra_reads

    def composed(*overrides):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return OmegaConf.to_container(compose("train", as_hydra_reads(overrides)), resolve=True)

    return composed


@pytest.fixture
def made(compose):
    """A tiny run's objects, from overrides."""
    from batch_renorm.running.build import build

    return lambda *overrides: build(compose(*TINY, *overrides))


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script in this process, without the seconds that imports take: exit status, standard output and error."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(str((ROOT / name).parent))
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None  # or this process stays in a sweep
        return code, *capsys.readouterr()

    return run


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["batch_renorm.running.run", "batch_renorm.models.timm_models", "hydra.main"])


class Forked:
    """A process that has made its imports already and calls do(*arguments), in a session of its own.

    It is a fork of a server that has made its imports and nothing else: a process that has used autograd on fake CUDA
    tensors cannot be forked. So `do` is a function of a module.
    """

    def __init__(self, do, *arguments, **environment):
        self._files = tempfile.mkdtemp()
        self.process = FORKS.Process(target=self._run, args=(do, arguments, os.environ | environment))
        self.process.start()

    def _run(self, do, arguments, environment):
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal; the tests may run under nohup
        multiprocessing.set_start_method(None, force=True)  # for loader processes
        os.environ.clear()
        os.environ.update(environment)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{self._files}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        do(*arguments)

    def __getstate__(self):
        return {"_files": self._files}

    def text(self, name):
        """What it has written so far on standard output ("out") or error ("err")."""
        file = Path(self._files, name)
        return file.read_text() if file.exists() else ""

    def signal(self, number):
        """A signal for it and all processes that it has started."""
        with suppress(ProcessLookupError):  # too young for a session of its own, or gone
            os.killpg(self.process.pid, number)

    def ended(self, seconds=300):
        """Its exit status; a process that has not ended by then is killed, and its status is negative."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def script(name, *arguments):
    """Run a script of this process's as a user does."""
    os.chdir(ROOT)
    sys.argv = [name, *map(str, arguments)]
    sys.path.insert(0, str((ROOT / name).parent))
    runpy.run_path(str(ROOT / name), run_name="__main__")


@pytest.fixture
def train_command(tmp_path):
    """Run train.py as a user does; returns the finished process."""

    def run(*overrides, folder="run", check=True):
        process = Forked(script, "train.py", *TINY, f"folder={tmp_path / folder}", *overrides)
        done = subprocess.CompletedProcess(overrides, process.ended(), process.text("out"), process.text("err"))
        assert not check or done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
        return done

    return run
