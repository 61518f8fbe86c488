"""Commands in docs/ name scripts, options and files that exist."""

import re
import shlex

import pytest

from tests.conftest import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def commands(text):
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page, compose):
    found = list(commands(page.read_text()))
    assert found
    for words in found:
        script = next(word for word in words if word.endswith((".py", ".sh")))
        assert (ROOT / script).exists(), script
        options = [word for word in words if "=" in word and not word.startswith("-")]
        if script in ("train.py", "scripts/samples.py"):
            compose(*[word for word in options if "," not in word])
        for flag in [word.partition("=")[0] for word in words if word.startswith("--") and script.endswith(".py")]:
            assert flag in (ROOT / script).read_text(), flag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
