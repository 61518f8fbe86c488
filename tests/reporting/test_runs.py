"""Run folders are read whatever state they are in."""

import pytest

from batch_renorm.errors import UserError
from batch_renorm.reporting import runs

POINTS = {"val_top1": [(100, 10.0), (200, 30.0), (300, 25.5)], "loss": [(50, 3.0)]}


def test_a_torn_last_line_is_left_out_even_where_it_reads_as_a_number(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, POINTS, state="running", step=300)
    whole = (folder / "curve.csv").read_text()
    for torn in ("400,val_top1,7", "400,val", "4"):
        (folder / "curve.csv").write_text(whole + torn)
        run = runs.read_run(folder)
        assert run.final("val_top1") == 25.5
        assert not run.notes
    (folder / "curve.csv").write_text(whole + "400,val_top1,71.2\n")
    assert runs.read_run(folder).final("val_top1") == 71.2


def test_a_bad_line_inside_is_left_out_and_said(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, POINTS)
    text = (folder / "curve.csv").read_text()
    (folder / "curve.csv").write_text(text + "400,val_top1,oops\n500,val_top1,nan\n600,val_top1,40\n")
    run = runs.read_run(folder)
    assert run.curve["val_top1"][0].tolist() == [100, 200, 300, 600]
    assert "2 lines" in run.notes[0]
    assert "line 6" in run.notes[0]


def test_of_a_step_logged_twice_the_later_value_counts(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, {"val_top1": [(100, 1.0), (200, 2.0), (100, 5.0)]})
    assert runs.read_run(folder).curve["val_top1"][1].tolist() == [5.0, 2.0]


def test_half_a_run_json_is_a_note_and_no_config_an_error(write, tmp_path):
    folder = write(tmp_path, "micro4_renorm", 1, POINTS)
    (folder / "run.json").write_text('{"state": "fini')
    run = runs.read_run(folder)
    assert (run.state, run.finished, run.step, run.steps) == ("unknown", False, 300, None)
    assert [note.split(":")[0].split("/")[-1] for note in run.notes] == ["run.json"]
    for text in ("", "- a\n- b\n", "a: [1", "scale: [a]\nexperiment: {b: c}\nseed: x\n"):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"micro4_renorm/seed1: left out, its config.yaml does not say"):
            runs.read_run(folder)


def test_any_depth_of_root_and_no_run_that_was_moved_aside(write, tmp_path):
    folder = write(tmp_path, "iid_renorm", 0, POINTS)
    write(tmp_path, "iid_renorm", 1, POINTS).rename(folder.parent / "seed1.old")
    for root in (tmp_path, tmp_path / "glyphs", folder.parent, folder):
        found, problems = runs.find_runs([root])
        assert [(run.scale, run.experiment, run.seed) for run in found] == [("glyphs", "iid_renorm", 0)]
        assert not problems
    assert runs.find_runs([tmp_path / "nowhere"]) == ([], [])


def test_of_the_same_run_under_two_roots_the_first_counts(write, tmp_path):
    write(tmp_path / "a", "iid_renorm", 0, {"val_top1": [(100, 1.0)]})
    write(tmp_path / "b", "iid_renorm", 0, {"val_top1": [(100, 2.0)]})
    found, problems = runs.find_runs([tmp_path / "b", tmp_path / "a"])
    assert [run.final("val_top1") for run in found] == [2.0]
    assert len(problems) == 1
    assert "comes first" in problems[0]
