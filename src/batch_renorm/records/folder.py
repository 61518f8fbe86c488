"""A run folder: the places of its files, and its config and its record as dictionaries."""

import json
from pathlib import Path
from typing import Any

import yaml

from batch_renorm import durable
from batch_renorm.errors import UserError


class Folder:
    """The paths of a run's files."""

    def __init__(self, path: Path) -> None:
        self.path, self.record_file = path, path / "run.json"
        self.config, self.curve = path / "config.yaml", path / "curve.csv"

    def record(self) -> dict[str, Any]:
        """The contents of run.json, empty before the first start; a damaged file is a UserError."""
        return read_mapping(self.record_file) if self.record_file.exists() else {}

    def write_record(self, **entries: Any) -> None:
        """Change entries of run.json, atomically."""
        durable.write_text(self.record_file, json.dumps(self.record() | entries, indent=2) + "\n")


def read_mapping(path: Path) -> dict[str, Any]:
    """A run's config.yaml or run.json; a damaged one is a UserError."""
    try:
        value = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_bytes())
    except (yaml.YAMLError, ValueError):  # of another form, or not even text
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: delete it, and the same train.py command makes it again")
    return value
