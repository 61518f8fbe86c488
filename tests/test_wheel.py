"""The wheel where there is torch and nothing else: the layer works, and brings its types."""

import os
import shutil
import subprocess
import sys
import zipfile

from tests.conftest import ROOT

PROGRAM = """
import sys
from importlib.metadata import distribution
from pathlib import Path

for name in ("filelock", "hydra", "numpy", "omegaconf", "pyarrow", "pydantic", "pytorch_lightning", "scipy", "timm",
             "torchvision", "wandb", "yaml"):
    sys.modules[name] = None  # as if it was not installed
import torch
import batch_renorm
from batch_renorm import BatchRenorm2d, Ramp, StepStatistics, convert_batchnorm, to_batchnorm

place = Path(sys.argv[1])
assert Path(batch_renorm.__file__).is_relative_to(place), batch_renorm.__file__
assert (place / "batch_renorm/py.typed").exists()
model = convert_batchnorm(torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), BatchRenorm2d(8, group_size=2, ramp=Ramp(0, 3, 3)), torch.nn.ReLU(),
    torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5),
))
optimizer, statistics = torch.optim.SGD(model.parameters(), 0.1), StepStatistics(model)
x, labels, losses = torch.randn(8, 3, 8, 8), torch.arange(8) % 5, []
for _ in range(3):
    losses.append(torch.nn.functional.cross_entropy(model(x), labels))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()
    statistics.update()
assert losses[2] < losses[0], losses
torch.testing.assert_close(to_batchnorm(model.eval())(x), model(x))
print("trained", [r for r in distribution("batch-renorm").requires if "extra ==" not in r])
"""


def test_the_wheel_needs_torch_alone_and_trains(tmp_path):
    source, place = tmp_path / "source", tmp_path / "place"
    # Building leaves files beside what it builds.
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("batch_renorm-*.whl")
    zipfile.ZipFile(wheel).extractall(place)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, place],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(place)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "trained ['torch>=2.11']"
