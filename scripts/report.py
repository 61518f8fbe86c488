"""Ours against the paper: figures, tables, verdicts and one page to explore, from run folders.

    python scripts/report.py             all runs under runs/, or under results/runs/ where there are none, to report/
    python scripts/report.py --show      the curves and tables in the terminal; writes nothing
    python scripts/report.py --runs runs results/runs     yours over the recorded ones
    python scripts/report.py --runs runs --out results --keep --no-page   what this repository's results/ are made with

Writes <out>/<scale>.html (one file, no network), <out>/<scale>.md, <out>/<scale>*.csv and
<out>/figures/<scale>/*.png and *.svg. Reads unfinished runs too, marks them, and says what is missing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from batch_renorm.reporting import compare, missing, paper, runs


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
    parser.add_argument("--show", action="store_true", help="print curves and tables, write nothing")
    parser.add_argument("--no-page", action="store_true", help="leave out the page, which is 5 MB")
    parser.add_argument("--keep", action="store_true", help="copy finished runs' small files to <out>/runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    roots = options.runs or [Path("runs")]
    found, problems = runs.find_runs(roots)
    if not found and not options.runs:
        roots = [Path("results/runs")]
        found, more = runs.find_runs(roots)
        problems += more
    for problem in problems:
        print(problem, file=sys.stderr)
    scales = [options.scale] if options.scale else sorted({run.scale for run in found})
    if not any(run.scale in scales for run in found):
        where = f"{' or '.join(map(str, roots))}" + (f" at scale {options.scale}" if options.scale else "")
        print(f"No runs under {where}. Make them:", file=sys.stderr)
        print(*missing.missing_commands([], options.scale or "glyphs"), sep="\n", file=sys.stderr)
        return 1

    published = paper.load()
    for scale in scales:
        own = [run for run in found if run.scale == scale]
        comparison = compare.compare(own, published, scale, accuracies=options.reach)
        if options.show:
            from batch_renorm.reporting import terminal

            terminal.show(comparison, own, published)
        else:
            command = shlex.join(["python", "scripts/report.py", *(sys.argv[1:] if arguments is None else arguments)])
            write(comparison, own, published, options, command)
    return 0


def write(
    c: compare.Comparison, own: list[runs.Run], published: paper.Published, options: argparse.Namespace, command: str
) -> None:
    from batch_renorm.reporting import csv_files, figures, markdown, page

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.keep:
        for run in own:
            if run.finished:
                runs.keep(run, out / "runs")
    drawn = figures.draw_all(own, published, c.scale, out / "figures" / c.scale)
    way = Path(os.path.relpath(paper.paper_folder(), out)).as_posix() + "/"
    text = markdown.markdown(c, command, way, {path.stem for path in drawn})
    (out / f"{c.scale}.md").write_text(text)
    csv_files.write_csv(c, out / f"{c.scale}.csv")
    csv_files.write_claims_csv(c, out / f"{c.scale}-claims.csv")
    csv_files.write_checks_csv(c, out / f"{c.scale}-checks.csv")
    written = [f"{c.scale}.md", f"figures/{c.scale}/"]
    if not options.no_page:
        (out / f"{c.scale}.html").write_text(page.page(c, own, published, command, out), encoding="utf-8")
        written.insert(0, f"{c.scale}.html")
    print(f"{c.scale}: wrote {', '.join(str(out / name) for name in written)}")
    for line in c.missing:
        print(f"  missing: {line}")
    for note in c.notes:
        print(f"  {note}")


if __name__ == "__main__":
    sys.exit(main())
