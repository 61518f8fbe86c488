"""The W&B report and view, without W&B: they draw what training logs, and the paper's curves as published."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import quote

import numpy as np
import pytest

from batch_renorm.records.curve import read_rows
from batch_renorm.records.naming import run_group, tags_of
from batch_renorm.reporting import paper
from batch_renorm.showing import dashboard
from tests.conftest import ROOT
from tests.wandb_file import history, offline_files, records


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


@pytest.mark.parametrize("scale", ["glyphs", "imagenet"])
def test_a_dry_run_names_what_training_logs(run_script, compose, tmp_path, scale):
    """The metrics of a recorded run; its tags put it into the run sets of its experiment and scale, and of no other."""
    options = ("--dry-run", "--scale", scale, "--out", tmp_path, "--entity", "me")
    code, out, err = run_script("scripts/wandb_report.py", *options)
    assert code == 0, err
    assert "wandb.json" in out
    spec = json.loads((tmp_path / "wandb.json").read_text())
    recorded = read_rows(ROOT / "results/runs/glyphs/noniid_renorm/seed0/curve.csv")
    named = metrics_named(spec)
    assert named >= {"val_top1", "train_top1", "val_top1_batch_statistics", "activation_distance", "r_clipped", "_step"}
    assert named <= {metric for _, metric, _ in recorded} | {"_step"}
    asked = [tags for grid in run_sets(spec) for tags in grid.values() if ["noniid_renorm"] in tags]
    assert asked
    config = compose("experiment=noniid_renorm")
    assert {all(set(value) & set(tags_of(config)) for value in tags) for tags in asked} == {scale == "glyphs"}
    papers = [sets for sets in run_sets(spec) if "The paper" in sets]
    assert [len(sets) for sets in papers] == [1, 1, 1]
    lines = [series for figure in paper.FIGURES.values() for series in figure.lines]
    assert {tag for sets in papers for tag in sets["The paper"][0]} == {f"paper-{name}" for name, _ in lines}
    group = quote(f"{run_group(config)}/noniid_renorm", safe="")  # what its seeds are grouped by
    assert (group in json.dumps(spec)) == (scale == "glyphs")


def test_reference_runs_hold_the_published_curves_and_are_logged_once(run_script, published, tmp_path, monkeypatch):
    two = {"iid_renorm": "", "noniid_batchnorm": ""}
    for module in (paper, dashboard):
        monkeypatch.setattr(module, "EXPERIMENTS", two)
    for said in ("2 reference runs logged, 0 were there", "0 reference runs logged, 2 were there"):
        code, out, err = run_script("scripts/wandb_report.py", "--offline", "--out", tmp_path)
        assert code == 0, err
        assert said in out
    files = {file.stem.removeprefix("run-"): file for file in offline_files(tmp_path)}
    assert set(files) == {f"paper-{name}" for name in two}
    file = files["paper-noniid_batchnorm"]
    [run, *_] = [record.run for record in records(file) if record.HasField("run")]
    assert set(run.tags) == {"paper", "paper-noniid_batchnorm"}
    for metric in ("val_top1", "train_top1", "val_top1_batch_statistics"):
        steps, values = published.curves["noniid_batchnorm", metric]
        told = {step: row[metric] for step, row in history(file) if metric in row}
        np.testing.assert_allclose(list(told), np.round(steps))
        np.testing.assert_allclose(list(told.values()), values)


def test_without_an_account_one_line_names_the_cure(run_script, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = run_script("scripts/wandb_report.py", "--entity", "me", "--out", tmp_path)
    assert code == 2
    said = err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "--dry-run" in said


class Weights(BaseHTTPRequestHandler):
    """As much of a W&B server as saving and finding views takes."""

    views: ClassVar[list[dict]] = []

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        answer = json.dumps({"data": self.data(asked.get("query", ""), asked.get("variables") or {})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def data(self, query, told):
        user = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        project = {"id": "1", "name": "p", "entityName": "me", "createdAt": "", "isBenchmark": False, "user": None}
        if "upsertView" in query:
            known = [view for view in self.views if view["id"] == told.get("id")]
            view = known[0] if known else {"id": f"view{len(self.views)}", "description": "", "user": None}
            view |= {name: told[name] for name in ("name", "displayName", "type", "spec")}
            self.views.extend([view] * (not known))
            return {"upsertView": {"view": {**view, "project": project}, "inserted": True}}
        if "allViews" in query:
            kind, name = told.get("viewType", "runs"), told.get("viewName")
            views = [view for view in self.views if view["type"] == kind and name in (None, view["name"])]
            return {"project": {"allViews": listed(views)}}
        return {"models": listed([project]), "project": None, "viewer": user}

    def log_message(self, *_):
        pass


def listed(nodes):
    edges = [{"node": node, "cursor": node["id"]} for node in nodes]
    return {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}


def test_publishing_again_changes_what_was_published(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Weights)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = """
from batch_renorm.showing import dashboard
print(dashboard.online("me/p"))
for _ in range(2):
    print(*dashboard.publish("me", "p", "glyphs"))
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
        expected = dashboard.specification("me", "p", "glyphs")
        part = expected["report" if view["type"] == "runs" else "workspace"]
        assert metrics_named(spec) == metrics_named(part)
        assert view["displayName"] == dashboard.report_title("glyphs")
