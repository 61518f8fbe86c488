"""One run, from a composed config to a finished run folder. What train.py calls."""

import csv
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from batch_renorm.data.loaders import Pass, training_loader
from batch_renorm.training import checkpoints, curve
from batch_renorm.training.build import Config, Run, build
from batch_renorm.training.callbacks import Evaluate, Record
from batch_renorm.training.errors import Stopped
from batch_renorm.training.folder import Folder, prepare
from batch_renorm.training.progress import Progress
from batch_renorm.training.signals import Stop, take_signals_from


def train(config: DictConfig) -> dict[str, Any]:
    """Start, resume or report the run of a config; returns its record (run.json).

    Raises:
        ValueError: a bad option, an unwritable folder, a folder with another run; one clear line.
        NotFiniteError: the loss or gradient is not finite; the last checkpoint is kept.
        Stopped: a signal asked for it; the last checkpoint is that of the step it stopped after.
    """
    stop = Stop()
    with stop.listening():
        return start_or_resume(config, stop)


def start_or_resume(config: DictConfig, stop: Stop) -> dict[str, Any]:
    settings: Config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    fresh, folder = settings.pop("fresh"), Folder(Path(settings["folder"]))
    if settings["trainer"]["threads"]:
        torch.set_num_threads(settings["trainer"]["threads"])
    hush()
    run = build(settings)
    run.training.stop, stop.talkative = stop, first_process()
    if first_process():
        prepare(folder, settings, fresh)
    if folder.record().get("state") == "finished":
        say(f"This run is finished; fresh=true repeats it.\n{summary(folder)}")
        return folder.record()
    checkpoint, corrupt = checkpoints.newest_readable(folder.path)
    for path in corrupt:
        say(f"{path} is damaged: falling back to {checkpoint or 'the start'}")
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    say(opening(run, folder, step))
    rewind(folder, step)
    fit(run, folder, checkpoint)
    if stop.decided and folder.record()["state"] != "finished":
        stopped = Stopped(stop.decided, folder.record()["step"], run.size.steps)
        say(f"\n{stopped}")
        raise stopped
    say("\n" + summary(folder))
    return folder.record()


def first_process() -> bool:
    """Whether this is the process that writes the run folder; Lightning numbers processes from their environment."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def rewind(folder: Folder, step: int) -> None:
    curve.rewind(folder.curve, step)


class Data(LightningDataModule):
    """The rank's passes, from the trainer's step on: resuming is starting at another step."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def train_dataloader(self) -> DataLoader[Pass]:
        trainer, run = self.trainer, self.run
        assert trainer is not None
        return training_loader(
            run.passes(trainer.global_rank, trainer.world_size), trainer.global_step, run.size.steps,
            run.machine.loader_processes, pin_memory=trainer.strategy.root_device.type == "cuda",
        )  # fmt: skip


def fit(run: Run, folder: Folder, checkpoint: Path | None) -> None:
    """Train from a checkpoint, or from the start, to the run's last step."""
    machine, steps = run.machine, run.size.steps
    ranks = machine.devices * machine.num_nodes
    trainer = Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        # mu and sigma are the same on every rank by construction: nothing to broadcast
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if ranks > 1 else "auto",
        max_steps=steps,
        logger=loggers(run, folder),
        callbacks=[
            Evaluate(run),
            checkpoints.Checkpoints(folder.path, run.evaluation),
            Record(run, folder),
            Progress(steps),
        ],
        plugins=[checkpoints.AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    take_signals_from(trainer)
    trainer.fit(run.training, datamodule=Data(run), ckpt_path=checkpoint, weights_only=True)


def loggers(run: Run, folder: Folder) -> list[Logger]:
    """curve.csv always; W&B as configs/logger says, the same run again after a resume."""
    result: list[Logger] = [curve.CurveLogger(folder.curve)]
    config, wandb = run.config, run.logging.wandb
    if wandb is not None and first_process():
        from pytorch_lightning.loggers import WandbLogger
        from wandb import Settings

        result.append(
            WandbLogger(
                project=wandb.project, entity=wandb.entity, offline=wandb.mode == "offline",
                save_dir=folder.path, id=folder.record()["id"], resume="allow",
                name=f"{config['experiment']}-seed{config['seed']}", group=config["experiment"],
                tags=[config["norm"]["name"], config["minibatch"]["name"], config["scale"]], config=config,
                settings=Settings(silent=wandb.mode == "offline"),
            )
        )  # fmt: skip
    return result


@rank_zero_only
def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def opening(run: Run, folder: Folder, step: int) -> str:
    """What is about to happen, in three lines."""
    config, minibatch = run.config, run.config["minibatch"]
    ranks = run.machine.devices * run.machine.num_nodes
    division = run.passes(0, ranks).division
    examples = run.size.workers * minibatch["size"]
    start = f"resuming at step {step:,} of" if step else "training for"
    return (
        f"{config['experiment']} (scale {config['scale']}, seed {config['seed']}): {start} {run.size.steps:,} steps\n"
        f"  {run.size.workers} workers x {minibatch['size']} = {examples:,} images a step, normalised in groups of "
        f"{minibatch['group']}; {ranks} rank{'s' if ranks > 1 else ''}, passes a step: {division.passes}\n"
        f"  {folder.path}"
    )


def summary(folder: Folder) -> str:
    """Final and best accuracy of a finished run, where its files are, and how to draw them."""
    with folder.curve.open() as file:
        rows = [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(file)]
    final = {metric: value for _, metric, value in rows}
    step, best = max(((s, v) for s, m, v in rows if m == "val_top1"), key=lambda point: point[1])
    record = folder.record()
    minutes = record["wall_seconds"] / 60
    return (
        f"validation top-1 {final['val_top1']:.1f}% at the end, {best:.1f}% at best (step {step:,}); "
        f"top-5 {final['val_top5']:.1f}%; on training images {final['train_top1']:.1f}%; "
        f"with batch statistics {final['val_top1_batch_statistics']:.1f}%\n"
        f"  {minutes:.1f} minutes; curve, config, checkpoints: {folder.path}\n"
        f"  figures and table: python scripts/report.py"
    )


def hush() -> None:
    """Silence Lightning's tips and warnings that do not apply: what a run says is said by `say`."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*GPU available but not used.*",
        ".*module.s. in eval mode.*",
        ".*treespec.*",
    ):
        warnings.filterwarnings("ignore", text)
