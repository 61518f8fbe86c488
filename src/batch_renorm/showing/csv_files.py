"""A comparison as CSV: only numbers, for other programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from batch_renorm.reporting.compare import CheckResult, ClaimResult, Comparison, Row
from batch_renorm.reporting.samples import Sample

Line = dict[str, object]


def write_csv(c: Comparison, path: Path) -> None:
    """Write the table as numbers: percent, points, steps, minutes; empty for missing ones."""
    if c.shares:  # 80 for 80% of the baseline's best, 70_percent for an accuracy of 70%
        names = [f"{100 * share:.0f}" for share in c.shares]
    else:
        names = [f"{value:g}_percent" for value in c.published_thresholds]
    write(path, [{"scale": c.scale} | _row(row, names) for row in c.rows])


def _row(row: Row, names: Sequence[str]) -> Line:
    line: Line = dict(zip(("experiment", "metric"), row.series, strict=True))
    line |= {"seeds": " ".join(map(str, row.seeds)), "unfinished_seeds": len(row.unfinished)}
    for name, sample in (("final", row.final), ("best", row.best)):
        low, high = sample.range if sample else (None, None)
        line |= {f"{name}_mean": _mean(sample), f"{name}_std": number(sample.std if sample else None)}
        line |= {f"{name}_min": number(low), f"{name}_max": number(high)}
    line |= {"published": number(row.published), "gap": number(row.gap), "to_baseline": _mean(row.to_baseline)}
    line["published_to_baseline"] = number(row.published_to_baseline)
    for i, name in enumerate(names):
        reached = row.reach[i] if row.reach else ()
        line[f"steps_to_{name}"] = number(fmean(reached) if reached else None, 0)
        line[f"seeds_to_{name}"] = len(reached)
        line[f"published_steps_to_{name}"] = number(row.published_reach[i], 0)
    return line | {"minutes": number(row.minutes)}


def write_claims_csv(c: Comparison, path: Path) -> None:
    write(path, [{"scale": c.scale} | _claim(result) for result in c.claims])


def _claim(r: ClaimResult) -> Line:
    line: Line = {"claim": r.claim.text, "left": "/".join(r.claim.left), "relation": r.claim.relation}
    line |= {"right": "/".join(r.claim.right), "margin": r.claim.margin}
    line |= {"published_difference": number(r.published_final), "difference": _mean(r.final), **_interval(r.final)}
    line |= {"difference_of_best": _mean(r.best), "published_difference_of_best": number(r.published)}
    return line | {"seeds": r.final.n if r.final else 0, "verdict": r.verdict}


def write_checks_csv(c: Comparison, path: Path) -> None:
    write(path, [{"scale": c.scale} | _check(result) for result in c.checks])


def _check(r: CheckResult) -> Line:
    line: Line = {"claim": r.check.text, "needed": r.check.needed, "unit": r.check.unit, "published": r.check.published}
    line |= {"value": _mean(r.values, 4), **_interval(r.values, 4)}
    return line | {"seeds": r.values.n if r.values else 0, "verdict": r.verdict}


def summary(sample: Sample | None) -> Line:
    """A sample's mean and interval."""
    return {"mean": _mean(sample), **_interval(sample)}


def _mean(sample: Sample | None, digits: int = 2) -> str:
    return number(sample.mean if sample else None, digits)


def _interval(sample: Sample | None, digits: int = 2) -> Line:
    low, high = (sample.interval if sample else None) or (None, None)
    return {"low95": number(low, digits), "high95": number(high, digits)}


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def write(path: Path, lines: Sequence[Line]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
