"""Shared by all tests: the shipped configs, shrunk, and runs of them."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

os.environ["OMP_NUM_THREADS"] = "1"  # for other processes; now, because a module's fixture may start the first of them
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton asks when it is imported: the GPU's kernels run on the CPU

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

    import batch_renorm.running.cli  # noqa: F401  (registers the configs' resolver)

    def composed(*overrides):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return OmegaConf.to_container(compose("train", list(overrides)), resolve=True)

    return composed


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run a script in this process, without the seconds that imports take: exit status, standard output and error."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return run


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["batch_renorm.running.run", "batch_renorm.models.timm_models", "hydra.main"])


def forked(arguments, environment, out, err):
    """In a process of its own that has made its imports already: a script with its arguments."""
    os.chdir(ROOT)
    multiprocessing.set_start_method(None, force=True)  # for loader processes
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = list(arguments)
    sys.path.insert(0, str((ROOT / arguments[0]).parent))
    runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def run_forked(arguments, tmp_path):
    """subprocess.run of a script, without the seconds that its imports take."""
    out, err = tmp_path / "forked.out", tmp_path / "forked.err"
    process = FORKS.Process(target=forked, args=(arguments, dict(os.environ), out, err))
    process.start()
    process.join()
    return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


@pytest.fixture
def train_command(tmp_path, tmp_path_factory):
    """Run train.py as a user does; returns the finished process."""
    output = tmp_path_factory.mktemp("output")

    def run(*overrides, folder="run", check=True, glyphs=True, env=None):
        tiny = TINY if glyphs else [override for override in TINY if not override.startswith("data.")]
        command = ["train.py", *tiny, f"folder={tmp_path / folder}", *overrides]
        if env is None:
            done = run_forked(command, output)
        else:
            done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=env)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return done

    return run
