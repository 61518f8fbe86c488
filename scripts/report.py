"""Our runs against the paper: figures, tables and verdicts, from run folders.

    python scripts/report.py             all runs under runs/, or if there are none under results/runs/, to report/
    python scripts/report.py --show      the tables in the terminal; writes nothing
    python scripts/report.py --runs runs results/runs     your runs, then the recorded ones
    python scripts/report.py --figure iid_batchnorm iid_groupnorm noniid_groupnorm    also a figure of your choice
    python scripts/report.py --study size.alpha           accuracy over an option in which runs differ
    python scripts/report.py --study ramp.rmax ramp.dmax  over pairs of values; if all are combined, as a grid
    python scripts/report.py --runs results/runs --out results --no-page   makes this repository's results/

A run whose config differs from its experiment's gets a separate row ("noniid_renorm, ramp.rmax=5"). A data set other
than the scale's gets a separate report (<scale>-<data set>). In --figure, names are rows or row/accuracy.

Writes <out>/<scale>.md, <out>/<scale>*.csv, <out>/figures/<scale>/*.png and *.svg, and <out>/<scale>.html (all curves,
interactive, works offline). The text of <out>/<scale>-notes.md, if there is one, becomes part of the page. A study is
<out>/study/<scale>-<option>.png, .svg, .md and .csv. Reads unfinished runs too, marks them, and says what is missing.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from batch_renorm.errors import UserError
from batch_renorm.records.config import flat_options
from batch_renorm.records.naming import as_name
from batch_renorm.reporting import compare, lists, paper, runs, study
from batch_renorm.reporting.recorded import RecordedRun
from batch_renorm.running.cli import CONFIGS, explained


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", metavar="DIR", help="where run folders are (default: runs, else results/runs)")
    add("--out", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    add("--scale", help="one scale only (default: every scale that has runs)")
    add("--figure", nargs="+", action="append", default=[], metavar="EXPERIMENT",
        help="draw these together, too; once for each figure. In a study: its lines")  # fmt: skip
    add("--study", nargs="+", metavar="OPTION", help="accuracy over the values of these options, and nothing else")
    add("--title", help="of the study's figure")
    add("--show", action="store_true", help="print the tables, write nothing")
    add("--no-page", action="store_true", help="leave out the interactive page, which is 5 MB")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack letters
    roots = options.runs or [Path("runs")]
    every, problems = runs.find_runs(roots, expected)
    if not every and not options.runs:
        roots = [Path("results/runs")]
        every, more = runs.find_runs(roots, expected)
        problems += more
    for problem in problems:
        print(problem, file=sys.stderr)
    every = [run for run in every if options.scale in (None, run.scale)]
    if not every:
        where = f"{' or '.join(map(str, roots))}" + (f" at scale {options.scale}" if options.scale else "")
        print(f"No runs under {where}. Make them:", file=sys.stderr)
        print(*compare.missing_commands([], options.scale or "glyphs"), sep="\n", file=sys.stderr)
        return 1
    command = shlex.join(["python", "scripts/report.py", *arguments])
    by_scale = {scale: [run for run in every if run.scale == scale] for scale in sorted({run.scale for run in every})}
    if options.study:
        draw_studies(by_scale, options, command)
        return 0
    figures = lists.asked_for(options.figure, every)
    published = paper.load_published()
    for scale, of_scale in by_scale.items():
        comparison = compare.compare(of_scale, published, scale, figures)
        if options.show:
            from batch_renorm.showing import terminal

            terminal.show(comparison)
        else:
            write(comparison, of_scale, published, options, command)
    return 0


@lru_cache
def composed(scale: str, experiment: str) -> Any | None:
    """The config of a scale's experiment, with unresolved interpolations; None if there is no such experiment."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", [f"scale={scale}", f"experiment={experiment}"])
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def expected(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Dotted option -> its value if only scale and experiment are chosen.

    Values that the config computes from other options follow from the run's own options: if a run has
    fewer steps, the earlier knees of its ramp do not count as differences. None computes with the data.
    """
    raw = composed(str(config.get("scale")), str(config.get("experiment")))
    if raw is None:
        return None
    own, written = dict(flat_options(config)), dict(flat_options(OmegaConf.to_container(raw)))
    plain = {option: value for option, value in written.items() if "${" not in str(value)}
    with_own = raw.copy()
    for option, value in plain.items():
        if not option.startswith("data.") and own.get(option, value) != value:
            OmegaConf.update(with_own, option, own[option])
    try:
        followed = dict(flat_options(OmegaConf.to_container(with_own, resolve=True)))
    except (OmegaConfBaseException, ValueError):  # the run's options do not fit these configs
        return plain
    return followed | plain


def write(
    c: compare.Comparison,
    of_scale: Sequence[RecordedRun],
    published: paper.Published,
    options: argparse.Namespace,
    command: str,
) -> None:
    from batch_renorm.showing import drawings, files  # here: a table need not wait for matplotlib

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    drawn = drawings.draw_all(of_scale, published, c.scale, out / "figures" / c.scale, c.figures)
    numbers = Path(os.path.relpath(paper.FOLDER, out)).as_posix() + "/"
    notes = out / f"{c.scale}-notes.md"
    by_hand = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    text = files.markdown(c, command, numbers, {path.stem for path in drawn}, by_hand)
    (out / f"{c.scale}.md").write_text(text, encoding="utf-8")
    files.write_tables(c, out / c.scale)
    written = [f"{c.scale}.md", f"figures/{c.scale}/"]
    if not options.no_page:
        from batch_renorm.showing import page

        (out / f"{c.scale}.html").write_text(page.page(c, of_scale, published), encoding="utf-8")
        written.append(f"{c.scale}.html")
    print(f"{c.scale}: wrote {', '.join(str(out / name) for name in written)}")
    for line in (*(f"missing: {command}" for command in c.missing), *c.notes):
        print(f"  {line}")


def draw_studies(studied: Mapping[str, Sequence[RecordedRun]], options: argparse.Namespace, command: str) -> None:
    """A study of each scale whose runs differ in the options."""
    from batch_renorm.showing.study import write_study

    heading = options.title or f"Accuracy over {', '.join(options.study)}"
    names = [name for figure in options.figure for name in figure]
    errors = []
    for scale, of_scale in studied.items():
        try:
            lines = study.study(of_scale, options.study, expected, names)
        except UserError as error:
            errors.append(error)
            continue
        path = options.out / "study" / f"{scale}-{as_name('+'.join(options.study))}"
        print(*write_study(lines, options.study, heading, path, command), sep="\n")
    if len(errors) == len(studied):
        raise errors[0]


if __name__ == "__main__":
    with explained():
        sys.exit(main(sys.argv[1:]))
