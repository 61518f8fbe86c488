"""The W&B report and view, without W&B: they draw what training logs, and the paper's curves as published."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from batch_renorm.records.curve import read_rows
from batch_renorm.reporting import paper
from batch_renorm.showing import dashboard
from tests.wandb_file import history, records


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
def test_a_dry_run_names_what_training_logs(run_script, train_command, tmp_path):
    train_command("logger=offline", "experiment=noniid_renorm")
    [(run, rows)] = logged(tmp_path / "run" / "wandb").values()
    for scale in ("glyphs", "imagenet"):
        options = ("--dry-run", "--scale", scale, "--out", tmp_path, "--entity", "me")
        code, out, err = run_script("scripts/wandb_report.py", *options)
        assert code == 0, err
        assert "wandb.json" in out
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
    assert set(run.tags) == {"noniid_renorm", "renorm", "pairs", "glyphs", "GlyphInception"}
    assert run.run_id == json.loads((tmp_path / "run/run.json").read_text())["id"]
    config = {item.key: item.value_json for item in run.config.update}
    assert {"ranks", "precision", "device", "parameters", "versions"} <= set(json.loads(config["machine"]))
    in_file = {(row["_step"], name): value for row in rows for name, value in row.items()}
    for step, metric, value in read_rows(tmp_path / "run" / "curve.csv"):
        assert float(f"{in_file[step, metric]:.6g}") == value


def test_figures_are_grids_of_their_experiments():
    """The paper's curves are among ours on its data set, and in grids of their own on another: other steps."""
    for scale in ("imagenet", "glyphs"):
        grids = run_sets(dashboard.specification("e", "p", scale))
        for figure in paper.FIGURES.values():
            experiments = {name for name, _ in figure.lines}
            sets = grids.pop(0)
            ours = {value[0][0] for name, value in sets.items() if name != "The paper"}
            assert ours == experiments
            papers = sets if scale == "imagenet" else grids.pop(0)
            assert set(papers["The paper"][0]) == {f"paper-{name}" for name in experiments}
            assert len(papers) == (1 + len(ours) if scale == "imagenet" else 1)
        assert not any("The paper" in sets for sets in grids)


def test_reference_runs_hold_the_published_curves_and_are_logged_once(run_script, published, tmp_path):
    for said in ("7 reference runs logged, 0 were there", "0 reference runs logged, 7 were there"):
        code, out, err = run_script("scripts/wandb_report.py", "--offline", "--out", tmp_path)
        assert code == 0, err
        assert said in out
    found = logged(tmp_path / "wandb")
    assert set(found) == {f"paper-{name}" for name in paper.EXPERIMENTS}
    run, rows = found["paper-noniid_batchnorm"]
    assert set(run.tags) == {"paper", "paper-noniid_batchnorm"}
    for metric in ("val_top1", "train_top1", "val_top1_batch_statistics"):
        steps, values = published.curves["noniid_batchnorm", metric]
        told = {row["_step"]: row[metric] for row in rows if metric in row}
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


def test_publishing_again_changes_what_was_published(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Weights)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = """
from batch_renorm.showing import dashboard, references
print(references.online("me/p"))
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
