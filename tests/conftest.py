"""Shared by all tests: the shipped configs, shrunk, and runs of them."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

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
    """Tests run side by side; one thread each is fastest, and what subprocesses inherit."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


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


@pytest.fixture
def train_command(tmp_path):
    """Run train.py as a user does; returns the finished process."""

    def run(*overrides, folder="run", check=True, glyphs=True, **options):
        tiny = TINY if glyphs else [override for override in TINY if not override.startswith("data.")]
        command = [sys.executable, "train.py", *tiny, f"folder={tmp_path / folder}", *overrides]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return done

    return run
