"""Ours against the paper: figures, tables and verdicts from run folders.

    python scripts/report.py             all runs under runs/, or under results/runs/ where there are none
    python scripts/report.py --show      the tables in the terminal; writes nothing
    python scripts/report.py --keep      also copies the finished runs' small files to results/runs/

Writes <out>/figures/<scale>/*.png and *.svg, <out>/<scale>.md, <out>/<scale>.csv and <out>/<scale>-claims.csv. Reads
unfinished runs too and says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from batch_renorm.reporting import compare, figures, paper, runs, tables


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="where run folders are; of a run found twice, the first",
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--scale", help="one scale only (default: every scale that has runs)")
    parser.add_argument("--show", action="store_true", help="print the tables, write nothing")
    parser.add_argument("--keep", action="store_true", help="copy finished runs' small files to <out>/runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    roots = options.runs or [Path("runs")]
    found, problems = runs.find_runs(roots)
    if not found and not options.runs:
        roots = [options.out / "runs"]
        found, more = runs.find_runs(roots)
        problems += more
    for problem in problems:
        print(problem, file=sys.stderr)
    scales = [options.scale] if options.scale else sorted({run.scale for run in found})
    if not any(run.scale in scales for run in found):
        where = f"{' or '.join(map(str, roots))}" + (f" at scale {options.scale}" if options.scale else "")
        print(f"No runs under {where}. Make them:", file=sys.stderr)
        print(*compare.missing_commands([], options.scale or "glyphs"), sep="\n", file=sys.stderr)
        return 1

    published = paper.load()
    for scale in scales:
        comparison = compare.compare(found, published, scale)
        if options.show:
            tables.show(comparison, found)
            continue
        options.out.mkdir(parents=True, exist_ok=True)
        if options.keep:
            for run in found:
                if run.scale == scale and run.finished:
                    runs.keep(run, options.out / "runs")
        page = options.out / f"{scale}.md"
        page.write_text(tables.markdown(comparison, f"python scripts/report.py --scale {scale}"))
        tables.write_csv(comparison, options.out / f"{scale}.csv")
        tables.write_claims_csv(comparison, options.out / f"{scale}-claims.csv")
        figures.draw_all(found, published, scale, options.out / "figures" / scale)
        print(f"{scale}: wrote {page} and {options.out / 'figures' / scale}/")
        for command in comparison.missing:
            print(f"  missing: {command}")
        for note in comparison.notes:
            print(f"  {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
