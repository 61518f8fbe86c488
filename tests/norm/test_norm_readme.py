"""The code in the norm README runs."""

import re
from pathlib import Path

import torch

import batch_renorm.norm


def test_the_readme_s_training_loop_runs():
    readme = Path(batch_renorm.norm.__file__).with_name("README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    data = [(torch.randn(8, 3, 8, 8), torch.randint(5, (8,))) for _ in range(3)]
    scope: dict = {"data": data}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)  # one after the other, as a reader would
    assert scope["model"].training
