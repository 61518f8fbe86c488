"""What a group tells an image: the formula, and that the measurement composes the groups that it says."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from batch_renorm.data.glyphs import Glyphs
from batch_renorm.norm import BatchRenorm2d
from scripts.mechanism import Shown, company, measure, specific_channels
from tests.conftest import ROOT, TINY
from tests.running.runs import trained

GROUP = 16


@pytest.fixture(scope="module")
def source(glyph_options):
    return Glyphs(**(glyph_options | {"labels": 24, "val_images": 20}))


@pytest.mark.parametrize("bold", [0.7, 30.0])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_an_activation_shown_by_k_of_m_images_becomes_sqrt_m_over_k_minus_1(bold, k):
    """Whatever the activation was, in batchnorm; with r and d it is (A - mu) / sigma, whatever k."""
    x = torch.zeros(GROUP, 1, 1, 1)
    x[:k] = bold
    batchnorm = BatchRenorm2d(1, eps=1e-12, rmax=1.0, dmax=0.0).train()
    assert batchnorm(x)[0].item() == pytest.approx((GROUP / k - 1) ** 0.5, rel=1e-4)
    renorm = BatchRenorm2d(1, eps=1e-12, rmax=1e6, dmax=1e6).train()
    assert renorm(x)[0].item() == pytest.approx(bold, rel=1e-4)  # mu = 0, sigma = 1


class Reader(nn.Module):
    """Answers with the letter of an image that more images of its group show; of equals, the second one.

    It looks up the nearest validation image, and so knows what each one shows.
    """

    def __init__(self, val):
        super().__init__()
        self.norm = BatchRenorm2d(1, group_size=GROUP)  # what training's normalisation is set in
        self.images, self.letters = val.images(np.arange(len(val.letters))).flatten(1), val.letters
        self.groups = []

    def known(self, x):
        return self.letters[torch.cdist(x.flatten(1), self.images).argmin(1)]

    def forward(self, x):
        answers = []
        for shown in map(self.known, x.split(GROUP)):
            self.groups.append(shown.tolist())
            counts = np.bincount(shown.ravel(), minlength=24)
            answers += [label if counts[label] > counts[other] else other for label, other in shown]
        return nn.functional.one_hot(torch.tensor(answers), 24).float()


def test_the_three_companies_differ_in_one_image_and_in_which_letter_it_shows_again(source):
    val = Shown(source)
    reader = Reader(val).eval()
    chosen = np.flatnonzero(val.letters[:, 0] != val.letters[:, 1])[::16]
    rows = {row.at: row.value for row in company(reader, val, chosen, GROUP, np.random.default_rng(0))}
    assert rows == {"label again": 100.0, "neither": 0.0, "other again": 0.0}
    assert len(reader.groups) == 3 * len(chosen)
    for label_again, neither, other_again in zip(*[iter(reader.groups)] * 3, strict=True):
        (label, other), *strangers = neither
        assert not {label, other} & set(np.ravel(strangers))
        groups = label_again, other_again
        shown = [[sum(letter in image for image in group) for letter in (label, other)] for group in groups]
        assert shown == [[2, 1], [1, 2]]
        assert label_again[:-1] == neither[:-1] == other_again[:-1]


class Letters(nn.Module):
    """A norm over channels of which number 3 + letter is 1 where the image shows that letter."""

    def __init__(self, val):
        super().__init__()
        self.reader, self.norm = Reader(val), BatchRenorm2d(30, eps=1e-12, group_size=GROUP, rmax=1.0, dmax=0.0)

    def forward(self, x):
        channels = torch.zeros(len(x), 30, 1, 1)
        channels[np.arange(len(x))[:, None], 3 + self.reader.known(x)] = 1
        return self.norm(channels).flatten(1)[:, 3:27]


def test_the_output_for_a_letter_follows_the_formula(source):
    val = Shown(source)
    model = Letters(val).eval()
    layer, channels = specific_channels(model, val)
    assert layer == "norm"
    np.testing.assert_array_equal(channels, np.arange(24) + 3)
    rows = {row.at: row for row in measure(model, source, GROUP, most=3, images=4) if row.measure == "output"}
    for k in (1, 2, 3):
        assert rows[str(k)].value == pytest.approx((GROUP / k - 1) ** 0.5, abs=1e-3)
        assert rows[str(k)].theory == pytest.approx((GROUP / k - 1) ** 0.5)


def test_images_of_one_letter_leave_nothing_to_ask(glyph_options):
    with pytest.raises(ValueError, match="measured on images of two letters; these have 1"):
        measure(nn.Identity(), Glyphs(**(glyph_options | {"others": 0})), GROUP)


@pytest.mark.slow
def test_the_script_measures_a_run_and_the_report_draws_it(compose, run_script, tmp_path):
    """`runs/glyphs/*/seed0` includes the control whose layers read no group."""
    place, none = tmp_path / "noniid_batchnorm", tmp_path / "noniid_groupnorm"
    for folder in (place, none):
        options = ["data.labels=24", "data.val_images=10", "size.steps=1", f"experiment={folder.name}"]
        trained(compose(*TINY, *options), folder)
    code, out, err = run_script("scripts/mechanism.py", none, place, "--images=4")
    assert code == 0, err
    assert f"{none}: no layer reads the group" in out
    assert not (none / "mechanism.csv").exists()
    rows = (place / "mechanism.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["label again", "neither", "other again", "1", "2", "3", "4"]
    assert str(place / "mechanism.csv") in out
    recorded = "glyphs/noniid_batchnorm/seed0"  # the tiny run differs from the experiment, and is not drawn as it
    shutil.copytree(ROOT / "results/runs" / recorded, tmp_path / "runs" / recorded)
    shutil.copy(place / "mechanism.csv", tmp_path / "runs" / recorded)
    options = ["--runs", tmp_path / "runs", "--out", tmp_path / "report", "--no-page"]
    code, out, err = run_script("scripts/report.py", *options)
    assert code == 0, err
    assert (tmp_path / "report/figures/glyphs/mechanism.png").stat().st_size > 10_000
    assert "figures/glyphs/mechanism.png" in (tmp_path / "report/glyphs.md").read_text()
