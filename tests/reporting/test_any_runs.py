"""Whatever run folders there are, the report draws what it can and names the rest; what differs is never averaged."""

import re
import shutil

import pytest

from batch_renorm.errors import UserError
from batch_renorm.reporting.compare import missing_commands
from batch_renorm.reporting.runs import find_runs, read_run
from scripts.report import expected
from tests.conftest import ROOT

VAL = "val_top1"
TWO = {VAL: [(100, 50.0), (200, 60.0)]}
POINTS = {"val_top1": [(100, 10.0), (200, 30.0), (300, 25.5)], "loss": [(50, 3.0)]}


def accuracies(tmp_path, scale="glyphs"):
    """label -> cells of the accuracy table"""
    text = (tmp_path / "report" / f"{scale}.md").read_text().split("## Accuracy")[1].split("\n## ")[0]
    return {label: cells for label, *cells in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|", text, re.MULTILINE)}


KINDS = {
    "no curve": lambda f: (f / "curve.csv").unlink(),
    "empty curve": lambda f: (f / "curve.csv").write_text(""),
    "a head alone": lambda f: (f / "curve.csv").write_text("step,metric,value\n"),
    "bytes": lambda f: (f / "curve.csv").write_bytes(b"\xff\xfe\x00\x01"),
    "no val_top1": lambda f: (f / "curve.csv").write_text("step,metric,value\n100,loss,3.0\n"),
    "one point": lambda f: (f / "curve.csv").write_text(f"step,metric,value\n100,{VAL},50\n"),
    "step 0": lambda f: (f / "curve.csv").write_text(f"step,metric,value\n0,{VAL},0\n"),
    "another grid": lambda f: (f / "curve.csv").write_text(f"step,metric,value\n7,{VAL},5\n13,{VAL},6\n"),
    "foreign config": lambda f: (f / "config.yaml").write_text("lr: 0.1\nmodel: resnet\ndata: cifar\nsize: 3\n"),
    "config of lists": lambda f: (f / "config.yaml").write_text("scale: [a]\nexperiment: {b: c}\nseed: x\ndata: []\n"),
    "no config": lambda f: (f / "config.yaml").unlink(),
    "odd run.json": lambda f: (f / "run.json").write_text('{"state": 3, "step": "x", "steps": [], "wall_seconds": ""}'),
    "missing keys": lambda f: (f / "run.json").write_text("{}"),
    "mechanism": lambda f: (f / "mechanism.csv").write_text("measure,at,value,theory\ncompany,neither,x,\n"),
    "layers": lambda f: (f / "curve.csv").write_text(
        f"step,metric,value\n100,{VAL},50\n100,activation_distance/a,0.5\n7,activation_distance/b,0.5\n"
    ),
    "stopped at once": lambda f: (
        (f / "curve.csv").unlink(),
        (f / "run.json").write_text('{"state": "stopped", "step": 3}'),
    ),
    "a file": lambda f: (shutil.rmtree(f), f.write_text("not a folder")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_run_folder_makes_it_fail(report, write, tmp_path, undrawn, kind):
    KINDS[kind](write(tmp_path / "runs", "noniid_renorm", 0, TWO))
    incomplete = kind in ("no curve", "empty curve", "a head alone", "bytes")
    nothing = incomplete or kind in ("no config", "foreign config", "config of lists", "a file")
    report("--show", status=int(nothing))
    write(tmp_path / "runs", "noniid_renorm", 1, TWO)
    write(tmp_path / "runs", "iid_batchnorm", 1, TWO)
    for arguments in (["--no-page"], ["--show"]):
        _, err = report(*arguments)
    assert ("noniid_renorm/seed0: no complete line in curve.csv yet" in err) == incomplete
    assert accuracies(tmp_path)["Batchnorm, i.i.d."][1] == "60.0"


def test_all_of_them_at_once_are_drawn(report, write, tmp_path, undrawn):
    for seed, spoil in enumerate(KINDS.values()):
        spoil(write(tmp_path / "runs", "noniid_batchnorm", seed, TWO))
    report()  # also of seeds that share no span of steps


def test_what_differs_is_a_row_of_its_own(report, trained, tmp_path, undrawn):
    trained("experiment=noniid_renorm", curve=[(100, 70.0)])
    trained("experiment=noniid_batchnorm", curve=[(100, 60.0)])
    rows = {
        "ramp.rmax=5": ["ramp.rmax=5"],
        "size.steps=60": ["size.steps=60", "size.evaluate_every=20"],  # the shorter ramp follows from the steps
        "data.labels=12": ["data.labels=12"],
        "norm.alpha=0.1": ["norm.alpha=0.1"],
        "model=resnet10t": ["model=timm", "model.name=resnet10t"],
    }
    for i, options in enumerate(rows.values()):
        trained("experiment=noniid_renorm", *options, curve=[(100, 10.0 * i)])
    report("--no-page")
    finals = {label: cells[1] for label, cells in accuracies(tmp_path).items()}
    assert finals["Batch Renorm, non-i.i.d."] == "70.0"
    assert {label: final for label, final in finals.items() if label.startswith("noniid_renorm, ")} == {
        f"noniid_renorm, {name}": f"{10.0 * i}" for i, name in enumerate(rows)
    }
    page = (tmp_path / "report/glyphs.md").read_text()
    assert "in no verdict" in page
    [claim] = [line for line in page.splitlines() if line.startswith("| non-i.i.d.: Batch Renorm above batchnorm |")]
    assert "| +10.0 | +23.2 | +10.0 | +11.5 |" in claim  # of the two runs that are the paper's


def test_the_machine_is_no_difference(trained, tmp_path):
    options = ["trainer=cpu", "trainer.threads=3", "trainer.precision=32", "logger=csv", "trainer.loader_processes=2"]
    trained("experiment=noniid_renorm", "size.evaluate_every=100", *options)
    [run] = find_runs([tmp_path / "runs"], expected)[0]
    assert not run.differs


def test_weights_to_start_from_are_no_difference_unless_runs_differ_in_them(write, tmp_path):
    """The scale leaves them to the user; the commands for what is missing have them."""
    for seed, file in enumerate(("/a/weights.pth", "/a/weights.pth", "/b/others.pth")):
        config = {"model": {"checkpoint": file}}
        write(tmp_path, "noniid_renorm", seed, TWO, scale="tiny", config=config)
    runs, _ = find_runs([tmp_path], lambda config: {"model.checkpoint": None})
    assert [run.differs for run in runs] == [{}, {}, {"model.checkpoint": "/b/others.pth"}]
    assert "scale=tiny model.checkpoint=/a/weights.pth" in missing_commands(runs[:2], "tiny")[0]


def test_without_a_config_of_that_experiment_most_runs_decide(write, tmp_path):
    for seed, alpha in ((0, 0.01), (1, 0.01), (2, 0.1)):
        write(tmp_path, "my_idea", seed, TWO, config={"norm": {"alpha": alpha}})
    found, _ = find_runs([tmp_path])
    assert [run.experiment for run in found] == ["my_idea", "my_idea", "my_idea, norm.alpha=0.1"]


def test_the_recorded_runs_are_the_papers_experiments():
    """An older commit's configs lack today's options; that is no difference."""
    found, problems = find_runs([ROOT / "results/runs"], expected)
    assert len(found) >= 25
    variants = [run for run in found if "," in run.folder.parent.name]  # of a sweep: their folders say what differs
    options = {tuple(run.differs.items()) for run in variants}
    assert options == {
        (("size.steps", "24000"), ("size.lr_decay_steps", "1600")),
        (("optim.lr", "0.0007"), ("size.lr", "0.0007")),
    }
    assert not [run.experiment for run in found if (run.differs or run.data) and run not in variants]
    assert not problems


def test_a_data_set_of_ones_own_has_a_report_of_its_own(report, trained, tmp_path, undrawn):
    """Also where its network does not fit the scale's config, and no other run says what is usual."""
    trained("experiment=iid_batchnorm")
    birds = ["data=folder", f"data.root='{tmp_path}/my birds'", "data.size=32"]
    trained("experiment=iid_batchnorm", *birds, curve=[(100, 33.0)])
    pictures = ["data=folder", "data.root=/my/pics", "data.size=32", "model=timm", "model.name=resnet18"]
    trained("experiment=noniid_renorm", *pictures)
    out, _ = report("--no-page")
    names = ["glyphs-my_birds.md", "glyphs-pics.md", "glyphs.md"]
    assert sorted(page.name for page in (tmp_path / "report").glob("*.md")) == names
    assert accuracies(tmp_path)["Batchnorm, i.i.d."][1] == "60.0"
    assert accuracies(tmp_path, "glyphs-my_birds")["Batchnorm, i.i.d., my_birds"][1] == "33.0"
    assert "78.5" not in (tmp_path / "report/glyphs-my_birds.md").read_text().split("## The paper's orderings")[0]
    rows = accuracies(tmp_path, "glyphs-pics")
    assert rows["Batch Renorm, non-i.i.d., pics"][1] == "\N{EN DASH}"
    assert rows["noniid_renorm, model=resnet18, pics"][1] == "60.0"
    assert "missing" not in out.split("glyphs-my_birds: ")[1]


def test_figures_of_ones_own_choice(report, trained, tmp_path, undrawn):
    trained("experiment=iid_batchnorm")
    trained("experiment=noniid_renorm", "ramp.rmax=5")
    figures = ["--figure", "iid_batchnorm", "noniid_batchnorm/train_top1", "--figure", "noniid_renorm, ramp.rmax=5"]
    report(*figures, "--no-page")
    text = (tmp_path / "report/glyphs.md").read_text()
    for name, title in (("own1", "iid_batchnorm, noniid_batchnorm/train_top1"), ("own2", "noniid_renorm, ramp.rmax=5")):
        assert f"![{title}](figures/glyphs/{name}.png)" in text
    _, err = report("--figure", "iid_batchnrm", status=2)
    assert err.count("\n") == 1
    assert "did you mean iid_batchnorm" in err


def test_our_controls_stand_beside_the_papers_arms(report, write, tmp_path, undrawn):
    for experiment, last in (
        ("noniid_renorm", 59.0),
        ("iid_groupnorm", 58.0),
        ("noniid_groupnorm", 57.5),
        ("noniid_frozen", 58.0),
    ):
        for seed in range(2):
            write(tmp_path / "runs", experiment, seed, {VAL: [(100, 50.0), (200, last)]}, scale="tiny")
    (tmp_path / "report").mkdir()
    (tmp_path / "report/tiny-notes.md").write_text("Differences count here, accuracies do not.\n", encoding="utf-8")
    report("--no-page")
    text = (tmp_path / "report/tiny.md").read_text(encoding="utf-8")
    assert "\nDifferences count here, accuracies do not.\n" in text
    assert {"figures/tiny/groupnorm.png", "figures/tiny/frozen.png"} <= set(re.findall(r"\(([^)]*)\)", text))
    rows = accuracies(tmp_path, "tiny")
    assert rows["GroupNorm, non-i.i.d. (ours)"][1] == "57.5 ± 0.0"
    assert rows["Frozen batchnorm, non-i.i.d. (ours)"][1] == "58.0 ± 0.0"
    row = "| GroupNorm: non-i.i.d. level with i.i.d. | within 2 points | -0.5 (-0.5 to -0.5) |"
    assert row.replace("-0", "\N{MINUS SIGN}0") in text
    assert "| non-i.i.d.: Batch Renorm above frozen batchnorm | > 0 points | +1.0 (+1.0 to +1.0) |" in text
    claims = [line for line in text.split("## The paper's orderings")[1].split("## ")[0].splitlines() if "**" in line]
    assert all("**not run**" in line for line in claims)  # none has both of its arms


def test_names_of_any_characters(report, write, tmp_path):
    r"""A `$` is no formula in a figure, nor is a `|` a cell's end; both would be an error or another text."""
    write(tmp_path / "runs", "a$_{|<b>*ä", 0, {VAL: [(100, 50.0), (200, 60.0)]}, scale="$x$")
    report("--figure", "a$_{|<b>*ä")
    [page] = (tmp_path / "report").glob("*.md")
    text = page.read_text(encoding="utf-8")
    assert r"| a\$_{\|&lt;b>\*ä (ours) | 0 | 60.0 |" in text
    [figure] = (tmp_path / "report/figures").glob("*/own1.svg")
    assert "<!-- a$_{|&lt;b&gt;*ä -->" in figure.read_text(encoding="utf-8")  # one text, in one piece
    assert "a$_{|" in page.with_suffix(".html").read_text(encoding="utf-8")


def test_a_torn_last_line_is_left_out_even_where_it_reads_as_a_number(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, POINTS, state="running", step=300)
    whole = (folder / "curve.csv").read_text()
    for torn in ("400,val_top1,7", "400,val", "4"):
        (folder / "curve.csv").write_text(whole + torn)
        run = read_run(folder)
        assert run.final("val_top1") == 25.5
        assert not run.notes
    (folder / "curve.csv").write_text(whole + "400,val_top1,71.2\n")
    assert read_run(folder).final("val_top1") == 71.2


def test_a_bad_line_inside_is_left_out_and_said_and_of_a_step_logged_twice_the_later_value_counts(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, POINTS)
    text = (folder / "curve.csv").read_text()
    (folder / "curve.csv").write_text(text + "400,val_top1,oops\n500,val_top1,nan\n600,val_top1,40\n100,val_top1,5\n")
    run = read_run(folder)
    assert [column.tolist() for column in run.curve["val_top1"]] == [[100, 200, 300, 600], [5, 30, 25.5, 40]]
    assert "2 lines" in run.notes[0]
    assert "line 6" in run.notes[0]


def test_half_a_run_json_is_a_note_and_no_config_an_error(write, tmp_path):
    folder = write(tmp_path, "micro4_renorm", 1, POINTS)
    (folder / "run.json").write_text('{"state": "fini')
    run = read_run(folder)
    assert (run.state, run.finished, run.step, run.steps) == ("unknown", False, 300, None)
    (note,) = run.notes
    assert note.startswith(f"left out: {folder / 'run.json'} is damaged")
    for text in ("", "- a\n- b\n", "a: [1", "scale: [a]\nexperiment: {b: c}\nseed: x\n"):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"micro4_renorm/seed1: left out, its config.yaml does not say"):
            read_run(folder)


def test_any_depth_of_root_and_no_run_that_was_moved_aside(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, POINTS)
    write(tmp_path, "iid_renorm", 1, POINTS).rename(folder.parent / "seed1.old")
    for root in (tmp_path, tmp_path / "glyphs", folder.parent, folder):
        found, problems = find_runs([root])
        assert [(run.scale, run.experiment, run.seed) for run in found] == [("glyphs", "iid_renorm", 0)]
        assert not problems
    assert find_runs([tmp_path / "nowhere"]) == ([], [])


def test_of_the_same_run_under_two_roots_the_first_counts(write, tmp_path):
    write(tmp_path / "a", "iid_renorm", 0, {"val_top1": [(100, 1.0)]})
    write(tmp_path / "b", "iid_renorm", 0, {"val_top1": [(100, 2.0)]})
    found, problems = find_runs([tmp_path / "b", tmp_path / "a"])
    assert [run.final("val_top1") for run in found] == [2.0]
    assert len(problems) == 1
    assert "comes first" in problems[0]
