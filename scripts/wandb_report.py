"""The comparison inside Weights & Biases: a report, a saved view, and the paper's curves as reference runs.

    python scripts/wandb_report.py --dry-run           write what would be published; needs no network and no account
    python scripts/wandb_report.py --entity NAME       publish; a second call updates it
    python scripts/wandb_report.py --offline           only log the paper's curves, as offline files to sync later

To upload runs, train with logger=wandb or use `wandb sync runs/*/*/*/wandb/offline-run-*`.
"""

import argparse
import json
from pathlib import Path
from typing import Literal

import wandb

from batch_renorm.errors import UserError
from batch_renorm.reporting import paper
from batch_renorm.running.cli import explained
from batch_renorm.showing import dashboard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="glyphs", help="whose runs (default: glyphs)")
    parser.add_argument("--project", default="batch-renorm", help="default: batch-renorm, as in configs/logger")
    parser.add_argument("--entity", help="user or team (default: the one that you are logged in with)")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="write <out>/wandb.json, publish nothing")
    how.add_argument("--offline", action="store_true", help="log the paper's curves to <out>/wandb, publish nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        path = options.out / "wandb.json"
        spec = dashboard.specification(options.entity or "ENTITY", options.project, options.scale)
        path.write_text(json.dumps(spec, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}: a report of {len(spec['report']['spec']['blocks'])} blocks and a view")
        return
    mode: Literal["offline", "online"] = "offline" if options.offline else "online"
    try:
        entity = options.entity if options.offline else options.entity or wandb.Api().default_entity or ""
        logged = dashboard.log_references(paper.load_published(), options.project, entity, mode, options.out)
        print(f"{len(logged)} reference runs logged, {len(paper.EXPERIMENTS) - len(logged)} were there")
        if options.offline:
            print(f"upload them once: wandb sync {options.out}/wandb/offline-run-*")
        else:
            print(*dashboard.publish(entity, options.project, options.scale), sep="\n")
    except (wandb.Error, OSError) as error:
        raise UserError(f"{str(error).splitlines()[0]}; --dry-run and --offline need no network") from error


if __name__ == "__main__":
    with explained():
        main()
