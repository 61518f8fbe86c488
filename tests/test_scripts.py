"""The scripts as a user runs them, and the code of README."""

import re
import shutil
from functools import partial

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from batch_renorm.models.glyph_inception import GlyphInception
from batch_renorm.records.curve import BY_THE_CLOCK, read_rows
from batch_renorm.running.build import load_run
from batch_renorm.running.checkpoints import newest_readable
from tests.conftest import ROOT, TINY
from tests.data import imagenet_files
from tests.running.runs import train_in_forks, trained

FILES = [
    *[override for override in TINY if not override.startswith("data.")],
    "scale=imagenet", "data=folder", "minibatch.size=4", "minibatch.group=4", "size.steps=1",
    "evaluation.labels_per_minibatch=2", "size.evaluation_batch=4", "size.train_sample=4", "trainer.workers_per_pass=1",
    "model=timm", "model.name=test_resnet", "data.size=64",
]  # fmt: skip
"""The paper's scale on files, shrunk in steps, workers and images, and a network of timm."""


def test_evaluate_again_gives_what_was_logged(run_script, compose, tmp_path):
    trained(compose(*TINY, "size.steps=4", "experiment=noniid_batchnorm"), tmp_path / "run")
    code, out, err = run_script("scripts/evaluate.py", tmp_path / "run")
    assert code == 0, err
    pairs = re.findall(r"(\S+) +(\S+)  \(logged: (\S+)\)", out)
    names = [name for name, _, _ in pairs]
    assert names[:4] == ["val_top1", "val_top5", "train_top1", "val_top1_batch_statistics"]
    assert {"val_top1_as_trained", "activation_distance", "activation_distance/head.0.1"} <= set(names)
    assert all(now == then for _, now, then in pairs), out
    older = tmp_path / "run/checkpoints/step00000002.ckpt"
    code, out, err = run_script("scripts/evaluate.py", tmp_path / "run", f"--checkpoint={older}")
    assert "step 2" in out, err


@pytest.mark.parametrize("network", ["glyph_inception", "resnet10t"])
def test_exported_weights_give_the_runs_logits_in_plain_batchnorm(run_script, compose, tmp_path, network):
    ours, folder, file = network == "glyph_inception", tmp_path / "run", tmp_path / "weights.safetensors"
    trained(compose(*TINY, *([] if ours else ["model=timm", f"model.name={network}"])), folder)
    code, out, err = run_script("scripts/export.py", folder, file)
    assert code == 0, err
    if ours:
        plain = GlyphInception(40, 1, partial(nn.BatchNorm2d, eps=1e-3), head=256, head_kernel=2, head_layers=3)
        plain.load_state_dict(load_file(file))
    else:
        assert f"timm.create_model({network!r}, num_classes=40" in out
        plain = timm.create_model(network, num_classes=40, in_chans=1, checkpoint_path=str(file))
    run = load_run(folder)
    checkpoint = torch.load(newest_readable(folder)[0], weights_only=True)
    assert checkpoint["config"] == run.config
    run.training.load_state_dict(checkpoint["state_dict"])
    images = torch.randn(4, 1, 16, 16)
    expected = run.training.inference_model(2).eval()(images)
    torch.testing.assert_close(plain.eval()(images), expected, rtol=1e-4, atol=1e-5)


def test_evaluate_names_what_is_wrong(run_script, tmp_path):
    for arguments, answer in (
        ([], "say which run: python scripts/evaluate.py runs/"),
        ([tmp_path], "not a run folder"),
    ):
        code, _, err = run_script("scripts/evaluate.py", *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert answer in err


def test_a_run_is_evaluated_on_other_validation_images(run_script, compose, tmp_path):
    """Their labels are the folders' sorted names, or what a list says."""
    root = imagenet_files.write_folders(tmp_path / "set")
    trained(compose(*FILES, f"data.root={root}"), tmp_path / "run")
    (tmp_path / "classes.txt").write_text("\n".join(sorted(path.name for path in (root / "train").iterdir())))
    others = [str(tmp_path / "run"), f"data.root={root / 'train'}"]
    accuracies = []
    for more in ([], [f"data.class_list={tmp_path / 'classes.txt'}"]):
        code, out, err = run_script("scripts/evaluate.py", *others, *more)
        assert code == 0, err
        assert "12 images" in out
        accuracies.append(re.findall(r"val_top\d +(\S+)", out))
    assert accuracies[0] == accuracies[1]
    for name in "abcde":
        shutil.copytree(next((root / "train").iterdir()), tmp_path / "five" / name)
    code, _, err = run_script("scripts/evaluate.py", others[0], f"data.root={tmp_path / 'five'}")
    assert (code, err.splitlines()[-1]) == (2, "error: the run knows 4 classes, data.root has 5")


@pytest.mark.slow
def test_real_files_give_the_same_curve_from_folders_and_from_a_store(run_script, compose, tmp_path):
    """Of JPEG images: two ranks with loader processes on folders, one on a store."""
    folders = imagenet_files.write_folders(tmp_path / "folders", per_class=2)
    code, _, err = run_script("scripts/prepare_imagenet.py", folders, tmp_path / "store", "--any-counts")
    assert code == 0, err
    options = [*FILES, "trainer.loader_processes=1", f"data.root={folders}"]
    out, _ = train_in_forks(compose(*options), tmp_path / "two", 2)
    assert re.search(r"a step takes [\d.e-]+ s, of which \d+% waits for images", " ".join(out.split()))
    trained(compose(*FILES, f"data.root={tmp_path / 'store'}"), tmp_path / "one")
    two, one = ({metric: v for _, metric, v in read_rows(tmp_path / run / "curve.csv")} for run in ("two", "one"))
    assert {"seconds_step", "seconds_wait", "loss", "val_top1", "train_top1"} <= set(two)
    two, one = ({k: v for k, v in row.items() if not k.startswith(BY_THE_CLOCK)} for row in (two, one))
    assert two == pytest.approx(one, rel=1e-3)


def test_a_page_of_samples(run_script, tmp_path):
    code, _, err = run_script("scripts/samples.py", tmp_path / "page.png", "scale=one_letter")
    assert code == 0, err
    with Image.open(tmp_path / "page.png") as page:
        assert page.size == (8 * (16 + 4) + 4, 6 * (16 + 4) + 4)  # images of 16, gaps of 4
        assert len(page.getcolors()) > 50


def test_readme_code_runs():
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
