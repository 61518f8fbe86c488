"""Our runs against the paper: figures, tables, verdicts and an interactive page, from run folders.

    python scripts/report.py             all runs under runs/, or if there are none under results/runs/, to report/
    python scripts/report.py --show      the curves and tables in the terminal; writes nothing
    python scripts/report.py --runs runs results/runs     your runs, then the recorded ones
    python scripts/report.py --figure iid_batchnorm iid_groupnorm noniid_groupnorm    also a figure of your choice
    python scripts/report.py --runs runs --out results --keep --no-page   makes this repository's results/

A run whose config differs from its experiment's gets a separate row ("noniid_renorm, ramp.rmax=5"). A data set other
than the scale's gets a separate report (<scale>-<data set>). --figures takes a YAML file of
`name: {title: ..., lines: [experiment, experiment/metric, "noniid_renorm, ramp.rmax=5"]}`.

Writes <out>/<scale>.html (one file, works offline), <out>/<scale>.md, <out>/<scale>*.csv and
<out>/figures/<scale>/*.png and *.svg. Reads unfinished runs too, marks them, and says what is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from batch_renorm.records.config import flat_options
from batch_renorm.reporting import compare, differences, lists, missing, paper, runs
from batch_renorm.reporting.recorded import RecordedRun

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="where run folders are; of a run found twice, the first (default: runs, else results/runs)",
    )
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    parser.add_argument("--scale", help="one scale only (default: every scale that has runs)")
    parser.add_argument(
        "--reach",
        type=float,
        nargs="+",
        default=(),
        metavar="PERCENT",
        help="count the steps to these accuracies (default: shares of the baseline's best)",
    )
    parser.add_argument(
        "--figure",
        nargs="+",
        action="append",
        default=[],
        metavar="EXPERIMENT",
        help="draw these together, too; once for each figure",
    )
    parser.add_argument("--figures", type=Path, nargs="+", default=(), metavar="YAML", help="figures from files")
    parser.add_argument("--show", action="store_true", help="print curves and tables, write nothing")
    parser.add_argument("--no-page", action="store_true", help="leave out the page, which is 5 MB")
    parser.add_argument("--keep", action="store_true", help="copy finished runs' small files to <out>/runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    roots = options.runs or [Path("runs")]
    found, problems = runs.find_runs(roots, expected)
    if not found and not options.runs:
        roots = [Path("results/runs")]
        found, more = runs.find_runs(roots, expected)
        problems += more
    for problem in problems:
        print(problem, file=sys.stderr)
    scales = [options.scale] if options.scale else sorted({run.scale for run in found})
    if not any(run.scale in scales for run in found):
        where = f"{' or '.join(map(str, roots))}" + (f" at scale {options.scale}" if options.scale else "")
        print(f"No runs under {where}. Make them:", file=sys.stderr)
        print(*missing.missing_commands([], options.scale or "glyphs"), sep="\n", file=sys.stderr)
        return 1

    try:
        figures = lists.asked_for(options.figure, options.figures, found)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    published = paper.load_published()
    for scale in scales:
        own = [run for run in found if run.scale == scale]
        comparison = compare.compare(own, published, scale, accuracies=options.reach, figures=figures)
        if options.show:
            from batch_renorm.showing import terminal

            terminal.show(comparison, own, published)
        else:
            command = shlex.join(["python", "scripts/report.py", *(sys.argv[1:] if arguments is None else arguments)])
            write(comparison, own, published, options, command)
    return 0


@lru_cache
def composed(scale: str, experiment: str) -> Any | None:
    """The config of a scale's experiment, with unresolved interpolations; None if there is no such experiment."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    import batch_renorm.running.cli  # noqa: F401  (registers what configs compute with)

    if not all((CONFIGS / group / f"{name}.yaml").is_file() for group, name in
               (("scale", scale), ("experiment", experiment))):  # fmt: skip
        return None
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", [f"scale={scale}", f"experiment={experiment}"])
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def expected(config: differences.Config) -> Mapping[str, Any] | None:
    """Dotted option -> its value if only scale and experiment are chosen.

    Values that the config computes from other options follow from the run's own options: if a run has
    fewer steps, the earlier knees of its ramp do not count as differences.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    raw = composed(str(config.get("scale")), str(config.get("experiment")))
    if raw is None:
        return None
    own, written = dict(flat_options(config)), dict(flat_options(OmegaConf.to_container(raw)))
    plain = {option: value for option, value in written.items() if "${" not in str(value)}
    with_own = raw.copy()
    for option in plain.keys() & own.keys():
        OmegaConf.update(with_own, option, own[option])
    try:
        followed = dict(flat_options(OmegaConf.to_container(with_own, resolve=True)))
    except (OmegaConfBaseException, ValueError):  # the run's options do not fit these configs
        return None
    return followed | plain


def write(
    c: compare.Comparison,
    own: list[RecordedRun],
    published: paper.Published,
    options: argparse.Namespace,
    command: str,
) -> None:
    from batch_renorm.showing import csv_files, drawings, markdown, page

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.keep:
        for run in own:
            if run.finished:
                runs.keep(run, out / "runs")
    drawn = drawings.draw_all(own, published, c.scale, out / "figures" / c.scale, c.figures)
    way = Path(os.path.relpath(paper.paper_folder(), out)).as_posix() + "/"
    text = markdown.markdown(c, command, way, {path.stem for path in drawn})
    (out / f"{c.scale}.md").write_text(text)
    csv_files.write_csv(c, out / f"{c.scale}.csv")
    csv_files.write_claims_csv(c, out / f"{c.scale}-claims.csv")
    csv_files.write_checks_csv(c, out / f"{c.scale}-checks.csv")
    written = [f"{c.scale}.md", f"figures/{c.scale}/"]
    if not options.no_page:
        (out / f"{c.scale}.html").write_text(page.page(c, own, published, command), encoding="utf-8")
        written.insert(0, f"{c.scale}.html")
    print(f"{c.scale}: wrote {', '.join(str(out / name) for name in written)}")
    for line in c.missing:
        print(f"  missing: {line}")
    for note in c.notes:
        print(f"  {note}")


if __name__ == "__main__":
    sys.exit(main())
