"""The W&B report and view, without W&B: they draw what training logs, and the paper's curves as published."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from wandb_workspaces.reports.v2 import Report
from wandb_workspaces.reports.v2.internal import ReportViewspec

from batch_renorm.reporting import paper
from batch_renorm.showing import dashboard
from tests.conftest import ROOT
from tests.wandb_file import history, records


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("wandb_report_script", ROOT / "scripts" / "wandb_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def logged(folder):
    """Each W&B file under the folder: id -> (run record, rows of metrics with their step as _step)."""
    found = {}
    for file in folder.glob("offline-run-*/run-*.wandb"):
        [run, *_] = [record.run for record in records(file) if record.HasField("run")]
        found[run.run_id] = run, [metrics | {"_step": step} for step, metrics in history(file)]
    return found


def metrics_named(specification):
    """Every metric on the axes of a specification's panels."""
    if isinstance(specification, list):
        return {name for value in specification for name in metrics_named(value)}
    if not isinstance(specification, dict):
        return set()
    config = specification.get("config", {}) if "viewType" in specification else {}
    names = {*config.get("metrics", []), *([config["xAxis"]] if "xAxis" in config else [])}
    return names.union(*map(metrics_named, specification.values()))


def run_sets(spec):
    """run set -> the tags that it asks for, of every panel grid."""
    grids = [block["metadata"] for block in spec["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    return [{s["name"]: [f["value"] for f in s["filters"]["filters"]] for s in g["runSets"]} for g in grids]


@pytest.mark.slow
def test_a_dry_run_names_what_training_logs(command, train_command, tmp_path, capsys):
    train_command("logger=offline", "experiment=noniid_renorm")
    [(run, rows)] = logged(tmp_path / "run" / "wandb").values()
    for scale in ("glyphs", "imagenet"):
        assert command(["--dry-run", "--scale", scale, "--out", str(tmp_path), "--entity", "me"]) == 0
        assert "wandb.json" in capsys.readouterr().out
        spec = json.loads((tmp_path / "wandb.json").read_text())
        named = metrics_named(spec)
        assert named >= {"val_top1", "train_top1", "val_top1_batch_statistics", "activation_distance", "r_clipped"}
        assert named <= {name for row in rows for name in row}
        assert "_step" in named
        asked = [tags for grid in run_sets(spec) for tags in grid.values() if ["noniid_renorm"] in tags]
        assert asked
        # The run's tags put it into the run sets of its experiment and scale, and of no other scale.
        assert {all(set(value) & set(run.tags) for value in tags) for tags in asked} == {scale == "glyphs"}
    assert run.run_group == "glyphs/noniid_renorm"  # what seeds are grouped by
    curve = (tmp_path / "run" / "curve.csv").read_text().splitlines()[1:]
    assert {row["_step"] for row in rows if "loss" in row} == {int(r.split(",")[0]) for r in curve if ",loss," in r}


def test_figures_are_grids_of_their_experiments(published):
    spec = dashboard.specification("e", "p", "imagenet", published)
    grids = run_sets(spec)
    for figure, sets in zip(paper.FIGURES.values(), grids, strict=False):
        experiments = {name for name, _ in figure.lines}
        ours = {value[0][0] for name, value in sets.items() if name != "The paper"}
        assert ours == experiments
        assert set(sets["The paper"][0]) == {f"paper-{name}" for name in experiments}
    panels = [
        panel["config"]
        for block in spec["report"]["spec"]["blocks"]
        if block["type"] == "panel-grid"
        for panel in block["metadata"]["panelBankSectionConfig"]["panels"]
    ]
    assert (panels[0]["yAxisMin"], panels[0]["yAxisMax"], panels[0]["groupArea"]) == (30, 80, "minmax")
    other = dashboard.specification("e", "p", "glyphs", published)
    assert sum("The paper" in sets for sets in run_sets(other)) == 4  # in panels of their own: other steps
    assert not any(len(sets) > 1 and "The paper" in sets for sets in run_sets(other))


def test_reference_runs_hold_the_published_curves_and_are_logged_once(command, published, tmp_path, capsys):
    for said in ("7 reference runs logged, 0 were there", "0 reference runs logged, 7 were there"):
        assert command(["--offline", "--out", str(tmp_path)]) == 0
        assert said in capsys.readouterr().out
    found = logged(tmp_path / "wandb")
    assert set(found) == {f"paper-{name}" for name in paper.EXPERIMENTS}
    run, rows = found["paper-noniid_batchnorm"]
    assert set(run.tags) == {"paper", "paper-noniid_batchnorm"}
    for metric in ("val_top1", "train_top1", "val_top1_batch_statistics"):
        steps, values = published.curves["noniid_batchnorm", metric]
        told = {row["_step"]: row[metric] for row in rows if metric in row}
        np.testing.assert_allclose(list(told), np.round(steps))
        np.testing.assert_allclose(list(told.values()), values)
    spec = dashboard.specification("e", "p", "glyphs", published)
    assert {r["id"] for r in spec["references"]} == set(found)
    # What is published can be read again by the library that made it.
    made = dashboard.report("e", "p", "glyphs", published)._to_model()
    again = ReportViewspec.model_validate(
        {**made.model_dump(by_alias=True, mode="json"), "spec": spec["report"]["spec"]}
    )
    blocks = Report._from_model(again)._to_model().spec.blocks
    assert [type(block) for block in blocks] == [type(block) for block in made.spec.blocks]


def test_without_an_account_one_line_names_the_cure(command, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command(["--entity", "me", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "--dry-run" in said


class Weights(BaseHTTPRequestHandler):
    """As much of a W&B server as saving and finding views takes."""

    views: ClassVar[list[dict]] = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        query, told = asked.get("query", ""), asked.get("variables") or {}
        last = {"endCursor": None, "hasNextPage": False}
        if "upsertView" in query:
            view = next((v for v in self.views if v["id"] == told.get("id")), None)
            if view is None:
                view = {"id": f"view{len(self.views)}"}
                self.views.append(view)
            view |= {k: told[k] for k in ("name", "displayName", "type", "spec")}
            project = {"name": told["projectName"], "entityName": told["entityName"]}
            data = {"upsertView": {"view": {**view, "project": project}, "inserted": True}}
        elif "allViews" in query:
            wanted = told.get("viewType", "runs"), told.get("viewName")
            nodes = [v for v in self.views if v["type"] == wanted[0] and wanted[1] in (None, v["name"])]
            edges = [{"node": {**v, "description": "", "user": None}, "cursor": v["id"]} for v in nodes]
            data = {"project": {"allViews": {"edges": edges, "pageInfo": last}}}
        elif "models(" in query:
            node = {"id": "1", "name": "p", "entityName": "me", "createdAt": "", "isBenchmark": False, "user": None}
            data = {"models": {"edges": [{"cursor": "1", "node": node}], "pageInfo": last}}
        elif "runs(" in query:
            data = {"project": None}
        else:
            viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            data = {"viewer": viewer}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_publishing_again_changes_what_was_published(published, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Weights)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = """
from batch_renorm.reporting import paper
from batch_renorm.showing import dashboard, references
print(references.online("me/p"))
for scale in ("glyphs", "glyphs"):
    print(*dashboard.publish("me", "p", scale, paper.load_published()))
"""
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0] == "set()"  # a project that is not there has no reference runs
    assert told[1] == told[2]
    assert told[1].split()[1] == f"{address}/me/p?nw=batchrenormglyphs"
    assert sorted(view["type"] for view in Weights.views) == ["project-view", "runs"]
    for view in Weights.views:
        spec = json.loads(view["spec"])
        expected = dashboard.specification("me", "p", "glyphs", published)
        part = expected["report" if view["type"] == "runs" else "workspace"]
        assert metrics_named(spec) == metrics_named(part)
        assert view["displayName"] == dashboard.report_title("glyphs")
