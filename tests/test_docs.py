"""Commands and links of the pages name scripts, options and files that exist."""

import re
import shlex
import shutil

import hydra
import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from batch_renorm.running.build import build
from batch_renorm.running.cli import as_hydra_reads
from tests.conftest import ROOT

OWN = "docs/experiments.md"  # its files exist on the page alone, see test_experiments_of_ones_own
PAGES = [
    "README.md", "docs/imagenet.md", "docs/photographs.md", "docs/scales.md", "docs/experiments.md", "slurm/README.md",
    "results/README.md", "results/benchmarks/README.md", "docs/running.md", "CONTRIBUTING.md",
]  # fmt: skip


def commands(text):
    """(script, words after it) of every line of shell that has a script of ours."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for at, word in enumerate(words):
                if word.endswith((".py", ".sbatch")) or (word.endswith(".sh") and "env.sh" not in word):
                    yield word, words[at + 1 :]


@pytest.mark.parametrize("page", sorted({*PAGES} - {OWN}))
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


@pytest.mark.parametrize("page", [*PAGES, "docs/code.md"])
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_experiments_of_ones_own(tmp_path, monkeypatch):
    """The page's files beside the shipped ones: every command composes, and what is trained is what the page says."""
    text = (ROOT / OWN).read_text()
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    files = re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", text, re.DOTALL)
    assert len(files) == len(re.findall(r"```(?:yaml|python)\n", text)) == 7
    for name, content in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    composed = []
    with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
        for script, words in commands(text):
            assert (ROOT / script).exists()
            options = [word for word in words if "=" in word and not re.match("(experiment|seed)=.*,", word)]
            composed.append((options, hydra.compose("train", as_hydra_reads(options))))
    assert len(composed) >= 10
    for options, config in composed:
        if "scale=imagenet" not in options:
            run = build(OmegaConf.to_container(config, resolve=True))
            assert "norm=layernorm" not in options or not run.evaluation.groups
            assert "model=small" not in options or type(run.training.model).__name__ == "Small"
            assert "minibatch=fours" not in options or run.evaluation.trained == (4, 4)
