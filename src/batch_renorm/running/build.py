"""From a config to the objects of a run."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from torch import nn

from batch_renorm.data.loaders import Division, Source, TrainingPasses, check_source
from batch_renorm.data.minibatches import Regime, regime
from batch_renorm.errors import UserError
from batch_renorm.norm import BatchRenorm2d, Ramp
from batch_renorm.norm.layers import has_layers
from batch_renorm.records.folder import read_mapping
from batch_renorm.running.arithmetic import Arithmetic, choose_arithmetic
from batch_renorm.running.ranks import Stop
from batch_renorm.running.schema import Config, Logging, Machine, Minibatch, Options, Size, read, target
from batch_renorm.training.evaluation import Evaluation
from batch_renorm.training.groups import CHANNELS, check_norm, check_norms
from batch_renorm.training.module import Training
from batch_renorm.training.optimizer import Optimization

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """All objects that a config describes. `training` is the Lightning module; `passes` makes a rank's data."""

    config: Config
    seed: int
    size: Size
    machine: Machine
    logging: Logging
    evaluation: Evaluation
    source: Source
    minibatch: Minibatch
    regime: Regime
    training: Training
    arithmetic: Arithmetic
    stop: Stop

    def passes(self, rank: int, ranks: int, workers_per_pass: int | None = None) -> TrainingPasses:
        division = Division(self.size.workers, rank, ranks, workers_per_pass)
        return TrainingPasses(self.source, self.regime, division, self.seed)


def build(
    config: Config, stop: Stop | None = None, device: torch.device = CPU, began_with: dict[str, Any] | None = None
) -> Run:
    """Make the run of a resolved config, with weights initialised from `seed`.

    Args:
        stop: receives signals; without it nothing stops the run early.
        device, began_with: what the arithmetic is chosen for, see `choose_arithmetic`.
    """
    options = read(config)
    minibatch, size = options.minibatch, options.size
    arithmetic, stop = choose_arithmetic(options.trainer, device, began_with), stop or Stop()
    norm = norm_factory(config, options)
    pytorch_lightning.seed_everything(options.general.seed, verbose=False)
    source: Source = make("data", target(config["data"]), **options.arguments["data"])
    check_source(source, config["data"]["_target_"])
    network = {"classes": source.classes, "channels": source.channels, "norm": norm}
    model: nn.Module = make("model", target(config["model"]), **options.arguments["model"], **network)
    check_norms(model, minibatch.group)
    optimizer = partial(target(config["optim"]), **options.arguments["optim"])
    optimization = Optimization(**options.optimization, make=optimizer)
    make("optim", optimization.optimizer, model)  # raises errors in the options now
    batchnorm = options.norm is not None and options.norm.name == "batchnorm"
    ramp = make("ramp", Ramp, **asdict(options.ramp))
    training = Training(
        model, source, options.loss, optimization, None if batchnorm else ramp, options.average.decay,
        examples=size.workers * minibatch.size, log_every=options.trainer.log_every, vote=stop,
        bf16=arithmetic.precision == "bf16", compile=arithmetic.compile,
    )  # fmt: skip
    evaluation = Evaluation(
        **options.arguments["evaluation"],
        trained=minibatch.composition,
        groups=has_layers(training.model),
    )
    evaluation.measurements(source)  # raises errors now, not at the first evaluation
    draws = regime(source.labels("train"), minibatch.size, size.workers, minibatch.images_per_label)
    machine, logging = options.trainer, options.logging
    return Run(
        config, options.general.seed, size, machine, logging, evaluation, source, minibatch, draws, training,
        arithmetic, stop,
    )  # fmt: skip


def make(section: str, constructor: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Call the constructor of a section. Its ValueError is a UserError: the arguments are options of the user."""
    try:
        return constructor(*arguments, **options)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{section}: {error}") from error


def load_run(folder: Path) -> Run:
    """Make the run that a run folder's config.yaml describes."""
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    return build(read_mapping(path))


def norm_factory(config: Config, options: Options) -> partial[Any]:
    """The function that makes a norm layer for a number of channels; gamma is fixed at 1 (section 4)."""
    norm, group = options.norm, options.minibatch.group
    if norm is not None:
        return partial(
            BatchRenorm2d, eps=norm.eps, momentum=norm.alpha, averages=norm.averages,
            group_size=group, scale=False, rmax=1.0, dmax=0.0,
        )  # fmt: skip
    factory, arguments = target(config["norm"]), options.arguments["norm"]
    if "group_size" in inspect.signature(factory).parameters:
        arguments = arguments | {"group_size": group}
    check_norm(make("norm", factory, channels=CHANNELS, **arguments), config["norm"]["name"])
    return partial(factory, **arguments)
