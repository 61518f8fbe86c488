"""From a config to the objects of a run. Every option goes to a constructor; an option that none takes is an error."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytorch_lightning
import torch
from hydra.utils import get_method

from batch_renorm.data.loaders import Division, Source, TrainingPasses
from batch_renorm.data.minibatches import Regime, regime
from batch_renorm.data.staging import on_this_node
from batch_renorm.errors import UserError
from batch_renorm.norm import BatchRenorm2d, Ramp
from batch_renorm.norm.layers import has_layers
from batch_renorm.running.arithmetic import Arithmetic, choose_arithmetic
from batch_renorm.running.cli import DEBUG_IMAGES
from batch_renorm.running.folder import read_config
from batch_renorm.running.ranks import Stop
from batch_renorm.training.evaluation import Composition, Evaluation
from batch_renorm.training.module import Training
from batch_renorm.training.optimizer import Optimization

Config = dict[str, Any]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """configs/scale: everything about size. Other sections of the config refer to the values not read here."""

    minibatch: int
    workers: int
    steps: int
    lr: float
    lr_decay: float
    lr_decay_steps: float
    rmsprop_eps: float
    alpha: float
    average_decay: float
    evaluate_every: int
    train_sample: int
    evaluation_batch: int
    minibatches_every: int = 1  # not in the configs of the first runs


@dataclass(frozen=True)
class Norm:
    """configs/norm: batchnorm or Batch Renorm, and how mu and sigma move; other norms have a `_target_`."""

    name: Literal["batchnorm", "renorm"]
    eps: float
    alpha: float
    averages: Literal["sigma", "variance"]

    def layer(self, group_size: int) -> partial[BatchRenorm2d]:
        """A factory of norm layers; gamma is fixed at 1 in every experiment (section 4)."""
        return partial(
            BatchRenorm2d, eps=self.eps, momentum=self.alpha, averages=self.averages,
            group_size=group_size, scale=False, rmax=1.0, dmax=0.0,
        )  # fmt: skip


@dataclass(frozen=True)
class Minibatch:
    """configs/minibatch: how a worker's images are drawn, and how many are normalised together."""

    name: str
    size: int
    images_per_label: int | None
    group: int

    def __post_init__(self) -> None:
        if self.size % self.group:
            raise UserError(f"a minibatch of {self.size} does not divide into groups of {self.group} (minibatch.group)")

    @property
    def composition(self) -> Composition:
        per_label = self.images_per_label or 1
        return Composition(self.size // per_label, per_label)

    def regime(self, labels: Any, workers: int) -> Regime:
        return regime(labels, self.size, workers, self.images_per_label)


@dataclass(frozen=True)
class Average:
    """The decay of the inference model after its warm-up."""

    decay: float


@dataclass(frozen=True)
class Machine:
    """configs/trainer: where and how fast a run trains; `precision`, `tf32` and `compile` also change its rounding."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: int | Literal["auto", "all"]
    num_nodes: int | Literal["auto"]
    workers_per_pass: int | Literal["auto"] | None
    loader_processes: int | Literal["auto"]
    threads: int | None
    log_every: int
    precision: Literal["auto", 32, "bf16"] = "auto"  # this and the following: not in the configs of the first runs
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool | Literal["auto", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "auto"
    tf32: bool = True
    deterministic: bool = False
    profile: Literal["simple", "advanced", "torch"] | None = None


@dataclass(frozen=True)
class Wandb:
    """Settings of a run's Weights & Biases run."""

    mode: Literal["offline", "online"]
    project: str
    entity: str | None
    tags: list[str] = field(default_factory=list)  # this and the following: not in the configs of the first runs
    notes: str | None = None
    artifact: bool = False
    samples: bool = False


class Logging:
    """configs/logger: Weights & Biases, or None for curve.csv alone."""

    def __init__(self, wandb: Config | None) -> None:
        self.wandb: Wandb | None = None if wandb is None else construct(Wandb, {"logger.wandb": wandb}, "logger.wandb")


@dataclass(frozen=True)
class Run:
    """All objects that a config describes. `training` is the Lightning module; `passes` makes a rank's data."""

    config: Config
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

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def passes(self, rank: int, ranks: int, workers_per_pass: int | None = None) -> TrainingPasses:
        division = Division(self.size.workers, rank, ranks, workers_per_pass)
        return TrainingPasses(self.source, self.regime, division, self.seed)


CHANNELS = 64  # channels of the norm layer that checks the options of a norm
SECTIONS = (
    "seed", "average", "evaluation", "folder", "fresh", "scale", "size", "norm", "minibatch", "ramp",
    "model", "data", "optim", "trainer", "logger", "experiment", "dataset", "dataset_of_scale", "debug",
)  # fmt: skip


def build(
    config: Config,
    stop: Stop | None = None,
    device: torch.device = CPU,
    began_with: dict[str, Any] | None = None,
) -> Run:
    """Make the run of a resolved config, with weights initialised from `seed`.

    Args:
        stop: receives signals; without it nothing stops the run early.
        device, began_with: what the arithmetic is chosen for, see `choose_arithmetic`.

    Raises:
        UserError: an unknown option, or an impossible value; the message names the option.
    """
    for name in config:
        if name not in SECTIONS:
            raise UserError(f"nothing reads the option {name!r}{near(name, SECTIONS)}")
    stop = stop or Stop()
    seed = config["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed}")
    if config.get("debug", False) not in (True, False):
        raise UserError(f"debug is true or false, got {config['debug']!r}")
    size: Size = construct(Size, config, "size")
    machine: Machine = construct(Machine, config, "trainer")
    arithmetic = choose_arithmetic(machine, device, began_with)
    minibatch: Minibatch = construct(Minibatch, config, "minibatch")
    norm = norm_factory(config, minibatch.group)
    ramp: Ramp = construct(Ramp, config, "ramp")
    pytorch_lightning.seed_everything(seed, verbose=False)
    data = {"data": on_this_node(config["data"])}
    source: Source = construct(target(config["data"]), data, "data")
    network = {"classes": source.classes, "channels": source.channels, "norm": norm}
    training = Training(
        construct(target(config["model"]), config, "model", **network),
        source,
        construct(Optimization, config, "optim"),
        ramp=ramp if config["norm"]["name"] == "renorm" else None,
        average_decay=construct(Average, config, "average").decay,
        examples=size.workers * minibatch.size,
        log_every=machine.log_every,
        vote=stop,
        bf16=arithmetic.precision == "bf16",
        channels_last=arithmetic.channels_last,
        compile=arithmetic.compile,
    )
    evaluation: Evaluation = construct(
        Evaluation,
        config,
        "evaluation",
        trained=minibatch.composition,
        groups=has_layers(training.model),
        most=DEBUG_IMAGES if config.get("debug") else None,
    )
    evaluation.measurements(source)  # raises errors now, not at the first evaluation
    return Run(
        config, size, machine,
        logging=construct(Logging, config, "logger"),
        evaluation=evaluation,
        source=source,
        minibatch=minibatch,
        regime=minibatch.regime(source.labels("train"), size.workers),
        training=training,
        arithmetic=arithmetic,
        stop=stop,
    )  # fmt: skip


def norm_factory(config: Config, group: int) -> partial[Any]:
    """The function that makes a norm layer for a number of channels; `_target_` names the function of other norms.

    Args:
        group: images that are normalised together; other norms ignore it.
    """
    section = config["norm"]
    if "_target_" not in section:
        norm: Norm = construct(Norm, config, "norm")
        return norm.layer(group)
    options = {name: value for name, value in section.items() if name not in ("name", "_target_")}
    construct(target(section), {"norm": options}, "norm", channels=CHANNELS)  # raises errors in the options now
    return partial(target(section), **options)


def load_run(folder: Path) -> Run:
    """Make the run that a run folder's config.yaml describes."""
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    return build(read_config(path))


def target(section: Config) -> Callable[..., Any]:
    """The function or class that a section's `_target_` names."""
    return get_method(section["_target_"])


def construct(make: Callable[..., Any], config: Config, name: str, **given: Any) -> Any:
    """Call a constructor with a config section; the error for a wrong option names it and similar ones."""
    section = {key: value for key, value in config[name].items() if key != "_target_"}
    parameters = inspect.signature(make).parameters
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in section.items():
        if key not in parameters and not open_ended:
            raise UserError(f"nothing reads the option {name}.{key}{near(key, parameters)}")
        if not is_of_type(value, hints.get(key, Any)):
            raise UserError(f"{name}.{key} must be {spelled(hints[key])}, got {value!r}")
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and key not in section and key not in given:
            raise UserError(f"the config has no {name}.{key}")
    return make(**section, **given)


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a config's value has the annotated type; only plain types and literals are checked."""
    options = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if any(value == word and type(value) is type(word) for word in words):
        return True
    options = tuple(option for option in options if get_origin(option) is not Literal)
    if not set(options) <= {int, float, str, bool, NoneType}:
        return True
    return type(value) in options or (type(value) is int and float in options)


def spelled(hint: Any) -> str:
    """An annotated type as a user writes its values: int | 'auto' | null."""
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (UnionType, Union):
        return " | ".join(map(spelled, get_args(hint)))
    return "null" if hint is NoneType else getattr(hint, "__name__", str(hint))


def near(name: str, known: Any) -> str:
    """'; did you mean ...?' for a misspelt name, or an empty string."""
    matches = get_close_matches(name, [str(k) for k in known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
