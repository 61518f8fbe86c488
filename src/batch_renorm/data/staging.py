"""Reading a data set from a copy on the node's own disk, if slurm/train.sbatch has made one."""

import os
from pathlib import Path
from typing import Any

from batch_renorm.errors import UserError


def on_this_node(data: dict[str, Any]) -> dict[str, Any]:
    """The data section with `root` in STAGED, the copy of the file or folder STAGE; both are environment variables.

    The config keeps the original path, so a run can resume on another node or be evaluated later.
    A node without the copy reads the original.

    Raises:
        UserError: STAGE is set, but `root` is neither STAGE nor below it, so nothing would read the copy.
    """
    original, copy = os.environ.get("STAGE"), os.environ.get("STAGED")
    if not original or not copy:
        return data
    whole, root = Path(original).resolve(), data.get("root")
    if root is None or not Path(root).resolve().is_relative_to(whole):
        raise UserError(f"STAGE={original} is copied to the nodes, but data.root={root} is not in it")
    if not Path(copy).exists():
        return data
    return data | {"root": str(Path(copy) / Path(root).resolve().relative_to(whole))}
