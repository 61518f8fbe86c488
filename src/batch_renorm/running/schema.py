"""The options of a run: their types and ranges, which are checked before anything is made.

A section's options are the annotated arguments of a class here, or of what its `_target_` names.
"""

import inspect
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ImportString, TypeAdapter, ValidationError
from pydantic import NonNegativeFloat as NonNegative
from pydantic import PositiveFloat as Positive
from pydantic.errors import PydanticUserError

from batch_renorm.errors import UserError, did_you_mean
from batch_renorm.records.config import flat_options
from batch_renorm.running.cli import check_headers
from batch_renorm.training.evaluation import Composition, Evaluation
from batch_renorm.training.loss import Loss
from batch_renorm.training.optimizer import Optimization

Config = dict[str, Any]
SHARED = ("lr", "lr_decay", "lr_decay_steps", "weight_decay", "clip_norm")
"""Options of configs/optim that every optimiser has."""


def as_text(value: Any) -> Any:
    """A number as text: a data set, an experiment or a tag may be called 2012."""
    return str(value) if type(value) in (int, float) else value


def part_of_a_path(name: str) -> str:
    if name in (".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise ValueError("a name of at most 200 bytes without /, for it is the name of a folder")
    return name


Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, BeforeValidator(as_text), Field(min_length=1)]
Name = Annotated[Text, AfterValidator(part_of_a_path)]


@dataclass(frozen=True)
class General:
    """The options outside the sections."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    scale: Name
    experiment: Name
    dataset: Name
    folder: Text
    dataset_of_scale: Name | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Size:
    """configs/scale: everything about size. Other sections of the config refer to the values not read here."""

    minibatch: Count
    workers: Annotated[int, Field(ge=1, le=100_000)]
    steps: Count
    lr: NonNegative
    lr_decay: Positive
    lr_decay_steps: Positive
    rmsprop_eps: Positive
    alpha: Fraction
    average_decay: Fraction
    evaluate_every: Count
    minibatches_every: Count
    train_sample: Count
    evaluation_batch: Count


@dataclass(frozen=True)
class Norm:
    """configs/norm: batchnorm or Batch Renorm, and how mu and sigma move; other norms have a `_target_`."""

    name: Literal["batchnorm", "renorm"]
    eps: Positive
    alpha: Fraction
    averages: Literal["sigma", "variance"]


@dataclass(frozen=True)
class Minibatch:
    """configs/minibatch: how a worker's images are drawn, and how many are normalised together."""

    name: Name
    size: Count
    images_per_label: Count | None
    group: Count

    def __post_init__(self) -> None:
        for option, part in (("group", "groups of {}"), ("images_per_label", "labels of {} images")):
            parts = part.format(number := getattr(self, option) or 1)
            if self.size % number:
                raise UserError(f"a minibatch of {self.size} does not divide into {parts} (minibatch.{option})")

    @property
    def composition(self) -> Composition:
        per_label = self.images_per_label or 1
        return Composition(self.size // per_label, per_label)


@dataclass(frozen=True)
class RampOptions:
    """configs/ramp: the steps between which rmax and dmax grow, and their final values; inf is no bound."""

    start: NonNegative
    dmax_end: NonNegative
    rmax_end: NonNegative
    rmax: Annotated[float, Field(ge=1, allow_inf_nan=True)]
    dmax: Annotated[float, Field(ge=0, allow_inf_nan=True)]


@dataclass(frozen=True)
class Average:
    """The decay of the inference model after its warm-up."""

    decay: Fraction


@dataclass(frozen=True)
class Machine:
    """configs/trainer: where and how fast a run trains; `precision`, `tf32` and `compile` also change its rounding."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Count | Literal["auto", "all"]
    num_nodes: Count | Literal["auto"]
    workers_per_pass: Count | Literal["auto"] | None
    loader_processes: Annotated[int, Field(ge=0, le=10_000)] | Literal["auto"]
    threads: Annotated[int, Field(ge=1, le=10_000)] | None
    log_every: Count
    precision: Literal["auto", 32, "bf16"]
    compile: bool | Literal["auto"]
    tf32: bool
    deterministic: bool
    profile: Literal["simple", "advanced", "torch"] | None


@dataclass(frozen=True)
class Wandb:
    """Settings of a run's Weights & Biases run."""

    mode: Literal["offline", "online"]
    project: Text
    entity: Text | None
    tags: list[Text]
    notes: Text | None


@dataclass(frozen=True)
class Logging:
    """configs/logger: Weights & Biases, or None for curve.csv alone."""

    wandb: Wandb | None


@dataclass(frozen=True)
class Options:
    """A checked config: sections as objects, and arguments of the objects that `build` makes."""

    general: General
    size: Size
    trainer: Machine
    minibatch: Minibatch
    ramp: RampOptions
    average: Average
    loss: Loss
    logging: Logging
    norm: Norm | None
    """None for a norm with a `_target_`."""
    optimization: Config
    arguments: dict[str, Config]


PLAIN: dict[str, Callable[..., Any]] = {
    "size": Size, "trainer": Machine, "minibatch": Minibatch, "ramp": RampOptions, "average": Average, "loss": Loss,
}  # fmt: skip
"""Sections whose options are the fields of a class here."""
SECTIONS = (*PLAIN, "logger", "evaluation", "norm", "optim", "data", "model")


def read(config: Config) -> Options:
    """Check a resolved config.

    Raises:
        UserError: an unknown option, or a value that is not allowed; one line with the option as a user writes it.
    """
    check_headers(config)
    for name, value in flat_options({"size": config.get("size")} | config):  # others refer to size
        if any(number != number for number in (value if isinstance(value, list) else [value])):
            raise UserError(f"{name} is nan: give it a number")
    general = {name: value for name, value in config.items() if name not in SECTIONS}
    for name in SECTIONS:
        if not isinstance(config.get(name), dict):
            raise UserError(f"{name} must be a section of options, got {shown(config.get(name))}")
    sections = {name: dict(config[name]) for name in SECTIONS}
    options: dict[str, Any] = {"general": General(**checked(General, general, ""))}
    for name, make in PLAIN.items():
        options[name] = make(**checked(make, sections[name], name))
    wandb = sections["logger"].get("wandb")
    if isinstance(wandb, dict):
        sections["logger"]["wandb"], wandb = None, Wandb(**checked(Wandb, wandb, "logger.wandb"))
    checked(Logging, sections["logger"], "logger")
    arguments = {"evaluation": checked(Evaluation, sections["evaluation"], "evaluation", "trained", "groups")}
    shared = {name: sections["optim"].pop(name) for name in SHARED if name in sections["optim"]}
    shared = checked(Optimization, shared, "optim", "make")
    norm = None
    if "_target_" in sections["norm"]:
        validated(TypeAdapter(Name), sections["norm"].pop("name", None), "norm.name")
        arguments["norm"] = arguments_of_target(sections["norm"], "norm", "channels", "group_size")
    else:
        norm = Norm(**checked(Norm, sections["norm"], "norm"))
    arguments["optim"] = arguments_of_target(sections["optim"], "optim", "params", "lr", "weight_decay")
    arguments["data"] = arguments_of_target(sections["data"], "data")
    arguments["model"] = arguments_of_target(sections["model"], "model", "classes", "channels", "norm")
    return Options(**options, logging=Logging(wandb), norm=norm, optimization=shared, arguments=arguments)


def arguments_of_target(section: Config, name: str, *given: str) -> Config:
    """The checked arguments of what a section's `_target_` names."""
    make = target(section, name)
    return checked(make, {option: value for option, value in section.items() if option != "_target_"}, name, *given)


def target(section: Config, name: str = "") -> Callable[..., Any]:
    """The function or class that a section's `_target_` names; a UserError if there is none."""
    path = section.get("_target_")
    try:
        made = TypeAdapter(ImportString).validate_python(path)
    except ValidationError as error:
        made, reason = None, error.errors()[0]["msg"].rpartition(": ")[2]
    else:
        reason = "it is no function and no class"
    if not callable(made):
        raise UserError(f"{name}._target_={shown(path)} cannot be used: {reason}".removeprefix("."))
    return made


def checked(make: Callable[..., Any], section: Config, name: str, *given: str) -> Config:
    """The arguments of `make` that a section has, if they are of the annotated types.

    JSON has the types that configs have: a list may become a tuple, but text no number and a number no bool.

    Args:
        given: arguments that the run itself gives, which are no options.

    Raises:
        UserError: an option that is unknown, missing or not allowed.
    """
    prefix = f"{name}." if name else ""
    parameters = inspect.signature(make).parameters
    options = {
        key: p for key, p in parameters.items() if key not in given and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in section:
        if key not in options and (key in given or not open_ended):
            known = [*options, *(SECTIONS if not name else SHARED if name == "optim" else ())]
            raise UserError(f"nothing reads the option {prefix}{key}{did_you_mean(key, known)}")
    for key, parameter in options.items():
        if parameter.default is parameter.empty and key not in section:
            raise UserError(f"the config has no {prefix}{key}")
    types = adapters(make)
    return {
        key: validated(types[key], value, prefix + key) if key in types else value for key, value in section.items()
    }


@cache
def adapters(make: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """What checks each annotated argument; without those whose annotations pydantic or Python cannot read."""
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError, AttributeError):
        hints = get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)
    result = {}
    for key, hint in hints.items():
        with suppress(PydanticUserError):
            result[key] = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
    return result


def validated(adapter: TypeAdapter[Any], value: Any, name: str) -> Any:
    try:
        return adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        allowed = " or ".join(dict.fromkeys(said(problem["msg"]) for problem in error.errors()))
    number = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value)
    cure = f", which is text; a number from the environment is {name}=${{oc.decode:${{oc.env:NAME}}}}" if number else ""
    raise UserError(f"{name} must be {allowed}, got {shown(value)}{cure}")


WORDS = {
    "a valid integer": "a whole number", "a valid number": "a number", "a valid boolean": "true or false",
    "a valid string": "text", "a valid array": "a list", "Field required": "a longer list", "None": "null",
    "String should have at least 1 character": "text",
}  # fmt: skip


def said(message: str) -> str:
    """pydantic's message in the words of configs."""
    text = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return "UTF-8 text" if text.startswith("Invalid JSON") else WORDS.get(text, text)


def shown(value: Any) -> str:
    """A value as users write it, in one line."""
    text = json.dumps(value) if value is None or type(value) is bool else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
