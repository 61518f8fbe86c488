"""A comparison as CSV: only numbers, for other programs."""

from __future__ import annotations

import csv
from pathlib import Path

from batch_renorm.reporting.compare import ClaimResult, Comparison
from batch_renorm.reporting.samples import Sample


def write_csv(c: Comparison, path: Path) -> None:
    """Write the table as numbers: percent, points, steps, minutes; empty for missing ones."""

    def spread(name: str, s: Sample | None) -> dict[str, object]:
        low, high = s.range if s else (None, None)
        return {
            f"{name}_mean": _number(s.mean if s else None),
            f"{name}_std": _number(s.std if s else None),
            f"{name}_min": _number(low),
            f"{name}_max": _number(high),
        }

    rows = []
    for row in c.rows:
        experiment, metric = row.series
        line: dict[str, object] = {"scale": c.scale, "experiment": experiment, "metric": metric}
        line |= {"seeds": " ".join(map(str, row.seeds)), "unfinished_seeds": len(row.unfinished)}
        line |= spread("final", row.final) | spread("best", row.best)
        line |= {"published": _number(row.published), "gap": _number(row.gap)}
        line["to_baseline"] = _number(row.to_baseline.mean if row.to_baseline else None)
        line["published_to_baseline"] = _number(row.published_to_baseline)
        for i, name in enumerate(_names(c)):
            reached = row.reach[i] if row.reach else ()
            mean = sum(reached) / len(reached) if reached else None
            line[f"steps_to_{name}"] = _number(mean, 0)
            line[f"seeds_to_{name}"] = len(reached)
            line[f"published_steps_to_{name}"] = _number(row.published_reach[i], 0)
        rows.append(line | {"minutes": _number(row.minutes)})
    _write(path, rows)


def _names(c: Comparison) -> list[str]:
    """80 for 80% of the baseline's best, 70_percent for an accuracy of 70%."""
    if c.shares:
        return [f"{100 * share:.0f}" for share in c.shares]
    return [f"{value:g}_percent" for value in c.published_thresholds]


def write_claims_csv(c: Comparison, path: Path) -> None:
    _write(path, [_claim_line(c.scale, result) for result in c.claims])


def _claim_line(scale: str, r: ClaimResult) -> dict[str, object]:
    low, high = (r.final.interval if r.final else None) or (None, None)
    return {
        "scale": scale,
        "claim": r.claim.text,
        "left": "/".join(r.claim.left),
        "relation": r.claim.relation,
        "right": "/".join(r.claim.right),
        "margin": r.claim.margin,
        "published_difference": _number(r.published_final),
        "difference": _number(r.final.mean if r.final else None),
        "low95": _number(low),
        "high95": _number(high),
        "difference_of_best": _number(r.best.mean if r.best else None),
        "published_difference_of_best": _number(r.published),
        "seeds": r.final.n if r.final else 0,
        "verdict": r.verdict,
    }


def write_checks_csv(c: Comparison, path: Path) -> None:
    rows = []
    for r in c.checks:
        low, high = (r.values.interval if r.values else None) or (None, None)
        line: dict[str, object] = {"scale": c.scale, "claim": r.check.text, "needed": r.check.needed}
        line |= {"unit": r.check.unit, "published": r.check.published}
        line |= {"value": _number(r.values.mean if r.values else None, 4), "low95": _number(low, 4)}
        line |= {"high95": _number(high, 4), "seeds": r.values.n if r.values else 0, "verdict": r.verdict}
        rows.append(line)
    _write(path, rows)


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
