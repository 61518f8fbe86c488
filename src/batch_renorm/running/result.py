"""The result of a finished run, read from its folder without torch and Lightning, so that it prints at once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch_renorm.errors import UserError
from batch_renorm.records import curve
from batch_renorm.running.folder import Folder, differences, read_config, with_places

FINISHED = "This run is finished; fresh=true repeats it."
LOADING = ("read", "decode", "augment")


def result_if_finished(settings: dict[str, Any], environment: Mapping[str, str] = os.environ) -> str | None:
    """The result of a config's run if it has finished without problems; None if `run.train` must handle it.

    Args:
        settings: the resolved config.
        environment: if it shows that torchrun or srun started several processes, the result is None.
    """
    if "RANK" in environment or environment.get("SLURM_STEP_NUM_TASKS", "1") != "1" or settings["fresh"] is not False:
        return None
    try:
        settings = with_places(settings)
        folder = Folder(Path(settings["folder"]))
        if folder.record().get("state") != "finished" or differences(read_config(folder.config), settings):
            return None
        return f"{FINISHED}\n{summary(folder)}"
    except (ValueError, OSError):  # `run.train` explains it
        return None


def final_accuracy(path: Path) -> float | None:
    """The final val_top1 of a run folder, percent; None if it has none."""
    values = [value for _, metric, value in curve.read_rows(Folder(path.expanduser()).curve) if metric == "val_top1"]
    return values[-1] if values else None


def summary(folder: Folder) -> str:
    """Final and best accuracy of a finished run, the place of its files, and the command that draws them.

    Raises:
        UserError: the curve is missing or has no accuracy.
    """
    rows = curve.read_rows(folder.curve)
    final = {metric: value for _, metric, value in rows}
    points = [(step, value) for step, metric, value in rows if metric == "val_top1"]
    if not points:
        raise UserError(f"{folder.path} is a finished run, but {folder.curve} has no val_top1; fresh=true repeats it")
    step, best = max(points, key=lambda point: point[1])
    record = folder.record()
    others = ", ".join(
        f"{name} {final[metric]:.1f}%"
        for metric, name in (
            ("val_top5", "top-5"),
            ("train_top1", "on training images"),
            ("val_top1_batch_statistics", "with batch statistics"),
        )
        if metric in final
    )
    stages = account(final, record.get("loading", {}).get("processes", 0))
    lines = [
        f"validation top-1 {final['val_top1']:.1f}% at the end, {best:.1f}% at best (step {step:,})",
        *([f"  {others}"] if others else []),
        *([f"  {stages}"] if stages else []),
        f"  {record.get('wall_seconds', 0) / 60:.1f} minutes; curve, config, checkpoints: {folder.path}",
        "  figures and table: python scripts/report.py",
    ]
    return "\n".join(lines)


def account(final: Mapping[str, float], processes: int) -> str | None:
    """One line that says what limits a run's speed, from the last values of the metrics; None without them.

    Args:
        processes: loader processes.
    """
    if "seconds_step" not in final:
        return None
    wait, transfer, step = (final[f"seconds_{stage}"] for stage in ("wait", "transfer", "step"))
    total = wait + transfer + step
    text = f"a step takes {total:.3g} s: network {step / total:.0%}, transfer and colours {transfer / total:.0%}"
    text += f", waiting for images {wait / total:.0%}"
    loading = {stage: final.get(f"seconds_{stage}", 0.0) for stage in LOADING}
    if not any(loading.values()):
        return text
    shares = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in loading.items())
    text += f"; its images take {sum(loading.values()):.3g} s of loading ({shares}) in {max(1, processes)} processes"
    if wait < 0.1 * total:
        return f"{text}: the network bounds the run"
    slowest = max(loading, key=loading.__getitem__)
    cure = "faster storage, or a store" if slowest == "read" else "more trainer.loader_processes"
    return f"{text}: loading bounds the run; {cure} would help"
