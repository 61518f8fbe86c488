"""How the house is built: packages import downwards, libraries stay in their rooms, linters are content."""

import ast
import graphlib
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

SOURCE = ROOT / "src/batch_renorm"
MAY_IMPORT = {
    "norm": set(),
    "data": set(),
    "models": {"norm", "data"},
    "training": {"norm", "data"},
    "records": set(),
    "running": {"norm", "data", "models", "training", "records"},
    "reporting": {"records"},  # reads run folders, never models
    "showing": {"reporting", "records"},
}
ROOMS = list(MAY_IMPORT)
GROUND_FLOOR = {"errors", "durable", "screen"}  # files that every room but norm may import
LIBRARIES = {  # where each may be known
    "pytorch_lightning": {"training", "running"},
    "wandb": {"running", "showing"},
    "hydra": {"running"},
    "omegaconf": {"running"},
    "timm": {"models", "training", "norm"},  # in norm: only where a timm layer is made again
    "torch": {"norm", "data", "models", "training", "running"},
    "wandb_workspaces": {"showing"},
    "plotly": {"showing"},
    "simplejpeg": {"data"},
    "pyarrow": {"data"},
    "scipy": {"data", "reporting"},  # for the devkit's MATLAB file; Student's t
    "matplotlib": {"data", "showing"},  # in data: for the fonts that it ships
}


def imported(path):
    """Every module that a file imports, also inside functions and under TYPE_CHECKING, and every name from a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{name.name}" for name in node.names))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards_and_libraries_stay_home(room):
    rooms = {room} | MAY_IMPORT[room] | (GROUND_FLOOR if room != "norm" else set())
    paths = list((SOURCE / room).glob("*.py"))
    assert len(paths) <= 15  # so that a room can be looked over
    for path in paths:
        for name in imported(path):
            library, *inside = name.split(".")
            assert library != "batch_renorm" or not inside or inside[0] in rooms, f"{path} imports {name}"
            assert room in LIBRARIES.get(library, ROOMS), f"{path} imports {name}"


def test_no_modules_import_each_other_in_a_circle():
    modules = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    graph = {name: set(imported(path)) & modules.keys() - {name} for name, path in modules.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)


def test_every_room_is_listed():
    assert sorted(ROOMS) == sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_linters(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pinned_versions_meet_the_declared_ones():
    """requirements.txt pins every dependency that pyproject.toml declares, within its range."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(one.name): next(iter(one.specifier)).version for one in requirements}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for text in [*project["dependencies"], *extras]:
        requirement = Requirement(text)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, text
