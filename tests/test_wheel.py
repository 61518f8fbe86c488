"""`pip install` of the wheel where there is torch and nothing else: the layer works, and brings its types."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

SOURCES = ["pyproject.toml", "README.md", "LICENSE", "src"]

PROGRAM = """
import importlib.util
from importlib.metadata import requires
from pathlib import Path

import torch
import batch_renorm
from batch_renorm import BatchRenorm2d, Ramp, StepStatistics, convert_batchnorm, set_limits, to_batchnorm

for name in ("timm", "numpy", "torchvision", "hydra", "pytorch_lightning"):
    assert importlib.util.find_spec(name) is None, f"{name} is here: this environment shows nothing"
assert Path(batch_renorm.__file__).with_name("py.typed").exists()
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), BatchRenorm2d(8, group_size=2), torch.nn.ReLU(),
    torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5),
)
model = convert_batchnorm(model)
optimizer, ramp, statistics = torch.optim.SGD(model.parameters(), 0.1), Ramp(0, 3, 3), StepStatistics(model)
x, labels, losses = torch.randn(8, 3, 8, 8), torch.arange(8) % 5, []
for step in range(3):
    set_limits(model, *ramp(step))
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    statistics.update()
    losses.append(loss.item())
assert losses[2] < losses[0], losses
torch.testing.assert_close(to_batchnorm(model.eval())(x), model(x))
print("trained", [r for r in requires("batch-renorm") if "extra ==" not in r])
"""


def torch_and_what_it_needs():
    """The installed distributions that `pip install torch` would bring."""
    found, wanted = {}, ["torch"]
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return found.values()


@pytest.fixture
def torch_alone(tmp_path):
    """A virtual environment that sees torch and its dependencies of this one, and no other package."""
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(place), "platbase": str(place)})
    for distribution in torch_and_what_it_needs():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            link = os.path.join(site, name)
            if not os.path.lexists(link):
                os.symlink(distribution.locate_file(name), link)
    return place / "bin" / "python"


def test_the_wheel_needs_torch_alone_and_trains(tmp_path, torch_alone):
    source = tmp_path / "source"  # building leaves files beside what it builds
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    shutil.rmtree(source / "src/batch_renorm.egg-info", ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("batch_renorm-*.whl")
    # No dependency is touched: the environment's torch is a link to the one that runs the tests.
    install = [*pip, "--python", torch_alone, "install", "--no-deps", "--no-index", wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [torch_alone, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "trained ['torch>=2.11']"
