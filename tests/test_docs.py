"""Commands and links of the pages name scripts, options and files that exist."""

import re
import shlex

import pytest

from tests.conftest import ROOT

PAGES = [
    "README.md", "docs/imagenet.md", "docs/scales.md", "slurm/README.md", "results/README.md",
    "results/benchmarks/README.md",
]  # fmt: skip


def commands(text):
    """(script, words after it) of every line of shell that has a script of ours."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for at, word in enumerate(words):
                if word.endswith((".py", ".sbatch")) or (word.endswith(".sh") and "env.sh" not in word):
                    yield word, words[at + 1 :]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page, compose):
    found = list(commands((ROOT / page).read_text()))
    assert found
    for script, words in found:
        assert (ROOT / script).exists(), script
        options = [word for word in words if re.match(r"[\w./]+=", word) and "..." not in word and "," not in word]
        if script in ("train.py", "scripts/samples.py", "slurm/train.sbatch", "slurm/reproduce.sh"):
            compose(*[option for option in options if not option.startswith("hydra")])
        source = "".join(file.read_text() for file in (ROOT / script, *(ROOT / "scripts/benchmarks").glob("*.py")))
        for flag in [word.partition("=")[0] for word in words if word.startswith("--") and script.endswith(".py")]:
            assert flag in source, flag


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(link).exists(), link
