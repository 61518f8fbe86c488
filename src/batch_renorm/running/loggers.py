"""The loggers of a run: curve.csv, and Weights & Biases, which follows it.

If W&B is late, absent or broken, training goes on: a separate thread opens the W&B run and logs. At every start it
logs the curve from its beginning: W&B cannot append to an offline run, and a killed run may have logged other steps
than its last checkpoint covers. So the newest offline file holds every step once. Online, only later steps are sent.
Lightning's WandbLogger opens the run in the training thread, and a resumed offline run lacks its beginning.
"""

import os
import queue
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from batch_renorm import durable
from batch_renorm.errors import UserError
from batch_renorm.records.curve import HEADER, read_rows
from batch_renorm.records.folder import Folder
from batch_renorm.records.naming import run_group, tags_of
from batch_renorm.running.build import Run
from batch_renorm.running.schema import Wandb
from batch_renorm.screen import print_line, waiting

PATIENCE = {"online": 60.0, "offline": 120.0, "after an error": 20.0}
"""Seconds that a run waits for W&B at its end: for its servers, or for its local process on a busy machine."""


class CurveLogger(Logger):
    """Appends rows to curve.csv; `save` makes them durable and must run before the checkpoint is written."""

    name, version = "curve", ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml and the W&B run have them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        rows = "".join(f"{step},{name},{value:.6g}\n" for name, value in metrics.items())
        with durable.room_for(self.path), self.path.open("a") as file:
            file.write(rows if file.tell() else ",".join(HEADER) + "\n" + rows)

    @rank_zero_only
    def save(self) -> None:
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


class WandbLogger(Logger):
    """Logs rows by step to the W&B run of the record's id, beginning with the curve up to `step`.

    `facts` are about this start, for W&B's table of runs: ranks, device, versions.
    """

    name, version = "wandb", ""

    def __init__(self, run: Run, wandb: Wandb, folder: Folder, step: int, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.run, self.wandb, self.step, self.facts = run, wandb, step, dict(facts)
        self.curve, self.folder, self.version = folder.curve, folder.path, folder.record()["id"]
        asked = os.environ.get("WANDB_MODE", "").lower()
        self.mode: Any = {"dryrun": "offline", "offline": "offline", "disabled": "disabled"}.get(asked, wandb.mode)
        self.rows: queue.Queue[tuple[int, dict[str, float]] | int] = queue.Queue()
        self.given_up = self.mode == "disabled"
        self.thread = threading.Thread(target=self._follow, name="wandb", daemon=True)
        if self.given_up:
            return
        # a service inherited from the parent process may still hold the run of a killed start, and then refuses it
        os.environ.pop("WANDB_SERVICE", None)
        os.environ.setdefault("WANDB__SERVICE_WAIT", str(PATIENCE["offline"]))  # it may start slowly
        try:
            import_module("wandb")  # not in the thread: of two threads that import it at once, one may see half of it
            self.thread.start()
        except ImportError:
            self._give_up("not installed")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        if not self.given_up:
            self.rows.put((step, dict(metrics)))

    log_hyperparams = CurveLogger.log_hyperparams

    def finalize(self, status: str) -> None:
        if self.thread.ident is None:
            return
        self.rows.put(0 if status == "success" else 1)
        patience = PATIENCE[self.mode] if status == "success" else PATIENCE["after an error"]
        with waiting("W&B"):
            self.thread.join(patience)
        if self.thread.is_alive():
            self._give_up(f"not done after {patience:.0f} s, its files are in {self.folder / 'wandb'} (wandb sync)")

    def _follow(self) -> None:
        import wandb

        try:
            live = self._open()
            if self.mode == "online":  # for the link in the report
                (self.folder / "wandb").mkdir(exist_ok=True)
                (self.folder / "wandb" / "url").write_text(f"{live.url}\n")
            begin = live.step  # online: one after W&B's last step
            for step, metrics in self._rows():
                if step >= begin:
                    live.log(metrics, step=step)
            live.finish(exit_code=self.status)
            wandb.teardown()  # waits for W&B's process, which writes the end of its file after finish() returns
        except Exception as error:
            self._give_up((str(error).strip() or type(error).__name__).splitlines()[0])

    def _open(self) -> Any:
        import wandb

        offline, config, settings, env = self.mode == "offline", self.run.config, self.wandb, os.environ
        if offline:
            for path in sorted((self.folder / "wandb").glob("offline-run-*")):  # of earlier starts
                aside = path.parent / "superseded" / path.name  # which `wandb sync` ignores
                aside.parent.mkdir(exist_ok=True)
                path.rename(aside)
        elif not wandb.login(prompt=False):
            raise UserError("no API key (wandb login, or WANDB_API_KEY)")
        # None leaves W&B its own variables: WANDB_NAME, WANDB_RUN_GROUP, WANDB_NOTES; project and entity have theirs in
        # configs/logger
        live = wandb.init(
            project=settings.project or None, entity=settings.entity or None, mode=self.mode, dir=self.folder,
            id=self.version, resume=None if offline else "allow", config=config | {"machine": self.facts},
            allow_val_change=True,  # a run may continue on another machine
            name=None if env.get("WANDB_NAME") else f"{config['experiment']}-seed{config['seed']}",
            group=None if env.get("WANDB_RUN_GROUP") else f"{run_group(config)}/{config['experiment']}",
            job_type="train",
            tags=tags_of(config, [*settings.tags, *filter(None, env.get("WANDB_TAGS", "").split(","))]),
            notes=settings.notes,
            settings=wandb.Settings(silent=offline, init_timeout=PATIENCE[self.mode], console="wrap"),
        )  # fmt: skip
        for metric in ("val_top1", "val_top5", "train_top1"):
            live.define_metric(metric, summary="max,last")  # in the summary as val_top1.max and val_top1.last
        return live

    def _rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        earlier = sorted(row for row in read_rows(self.curve) if row[0] <= self.step)
        for step, group in groupby(earlier, key=lambda row: row[0]):
            yield step, {metric: value for _, metric, value in group}
        while not isinstance(row := self.rows.get(), int):
            yield row
        self.status = row

    def _give_up(self, reason: str) -> None:
        if not self.given_up:
            print_line(f"going on without W&B ({reason}); curve.csv has everything")
        self.given_up = True
