"""A comparison as CSV, for other programs: percent, points, steps, minutes; empty where there is no number."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from batch_renorm.reporting.compare import SHARES, Comparison
from batch_renorm.reporting.samples import Sample

Line = dict[str, object]


def write_tables(c: Comparison, path: Path) -> None:
    """Write <path>.csv, the curves, <path>-claims.csv and <path>-checks.csv."""
    for end, lines in (("", _curves(c)), ("-claims", _claims(c)), ("-checks", _checks(c))):
        write(path.with_name(f"{path.name}{end}.csv"), [{"scale": c.scale} | line for line in lines])


def _curves(c: Comparison) -> Iterator[Line]:
    for row in c.rows:
        line: Line = dict(zip(("experiment", "metric"), row.series, strict=True))
        line |= {"seeds": " ".join(map(str, row.seeds)), "unfinished_seeds": len(row.unfinished)}
        line |= spread("final", row.final) | spread("best", row.best)
        line |= {"published": row.published, "gap": row.gap, **spread("to_baseline", row.to_baseline)}
        line["published_to_baseline"] = row.published_to_baseline
        for share, reached, published in zip(SHARES, row.reach or [()] * len(SHARES), row.published_reach, strict=True):
            name = f"to_{100 * share:.0f}"  # per cent of the baseline's best
            line |= {f"steps_{name}": fmean(reached) if reached else None, f"seeds_{name}": len(reached)}
            line[f"published_steps_{name}"] = published
        yield line | {"minutes": row.minutes}


def _claims(c: Comparison) -> Iterator[Line]:
    for r in c.claims:
        line: Line = {"claim": r.claim.text, "left": "/".join(r.claim.left), "relation": r.claim.relation}
        line |= {"right": "/".join(r.claim.right), "margin": r.claim.margin}
        line |= {"published_final": r.published_final, "published_best": r.published}
        yield line | spread("final", r.final) | spread("best", r.best) | {"verdict": r.verdict}


def _checks(c: Comparison) -> Iterator[Line]:
    for r in c.checks:
        line: Line = {"claim": r.check.text, "needed": r.check.needed, "unit": r.check.unit}
        yield line | {"published": r.check.published, **spread("value", r.values), "verdict": r.verdict}


def spread(name: str, sample: Sample | None) -> Line:
    """Mean, standard deviation, the mean's 95% interval, least and largest value, and the number of seeds."""
    mean, std = (sample.mean, sample.std) if sample else (None, None)
    low95, high95 = (sample.interval if sample else None) or (None, None)
    least, most = sample.range if sample else (None, None)
    numbers: Line = {"mean": mean, "std": std, "low95": low95, "high95": high95, "min": least, "max": most}
    return {f"{name}_{key}": value for key, value in numbers.items()} | {f"{name}_seeds": sample.n if sample else 0}


def write(path: Path, lines: Sequence[Line]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
