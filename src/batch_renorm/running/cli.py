"""The command line: values that configs compute, quoted paths, folders of sweeps, and errors in one clear line."""

import errno
import os
import re
import shlex
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from batch_renorm.errors import (
    TRANSIENT,
    DiskFullError,
    NotFiniteError,
    Stopped,
    TransientReadError,
    UserError,
    did_you_mean,
)
from batch_renorm.records import naming
from batch_renorm.records.config import flat_options

CONFIGS = Path(__file__).parents[3] / "configs"
MENDABLE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EROFS,
    errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
"""Errors of files that a user can mend."""
PATHS = ("folder", "data.root")
IN_EVERY_PLACE = ("scale", "experiment", "seed")
"""The parts of the default folder."""
LONGEST = 120  # characters of a sweep's options in a folder's name; file systems take 255 in all


@contextmanager
def explained() -> Iterator[None]:
    """End the program with one line on what a user can mend (status 2) or try again (75); a bug has its traceback.

    Use it around composing the config and, inside Hydra's main, around the run: Hydra would print its
    own message before an exception leaves its main.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises composition errors, too
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        exit_with(composition(error))
    except (UserError, DiskFullError, NotFiniteError, yaml.YAMLError) as error:
        exit_with(" ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else str(error))
    except UnicodeDecodeError as error:
        if (path := not_utf8()) is None:
            raise
        exit_with(f"{path} is not UTF-8 text: save it as UTF-8 ({error.reason})")
    except TransientReadError as error:
        exit_with(str(error), os.EX_TEMPFAIL)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        if error.errno in TRANSIENT:
            exit_with(f"{what}; this may pass: run the same command again", os.EX_TEMPFAIL)
        if error.filename is None or error.errno not in MENDABLE:
            raise
        exit_with(f"cannot read or write {what}")
    except Stopped as stopped:
        raise SystemExit(stopped.status) from None
    except KeyboardInterrupt:  # before there is anything to finish
        raise SystemExit(130) from None


def exit_with(message: str, status: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    if "SUBMITIT_EXECUTOR" in os.environ and sys.exception():
        raise  # in a sweep's job on a cluster: the waiting command gets the exception and explains it
    raise SystemExit(status)


def not_utf8() -> Path | None:
    """The first config file that is not UTF-8 text, among the shipped ones and those of --config-dir."""
    given = [argument.partition("=")[2] for argument in sys.argv if argument.startswith(("--config-dir=", "-cd="))]
    for path in (path for folder in [CONFIGS, *map(Path, given)] for path in folder.rglob("*.yaml")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return None


def composition(error: Exception) -> str:
    """The message for what Hydra or OmegaConf cannot compose; a misspelt name has similar ones."""
    if isinstance(error, OverrideParseException):
        return unread(error.override)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if name == "submitit_slurm":
            return "hydra/launcher=submitit_slurm needs hydra-submitit-launcher: pip install hydra-submitit-launcher"
        return f"no {group}={name}{did_you_mean(name, error.options)}"
    text = str(error).strip() or str(error.__cause__)
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'\n", text)
    if ambiguous is not None:
        return unread(ambiguous[1]) + " (or, to try each of several values in turn, add -m)"
    match = re.search(r"Could not override '([^']+)'", text)
    if match is None:
        return text.splitlines()[0]
    name = match[1]
    if "@" in name:  # norm@experiment.norm: the choice of a file that stands below its group
        return without_header(name.partition("@")[2].partition(".")[0])
    others = [other for other in known_options() if other != name]
    return f"no option {name}{did_you_mean(name, others)} (python train.py --help)"


def unread(override: str) -> str:
    """The message for an override that Hydra cannot read, with the correct spelling."""
    name, equals, value = override.partition("=")
    if not equals:
        return f"options are name=value, got {override!r}"
    return (
        f"the value of {name} has characters that mean something to Hydra: quote it, in the shell "
        f"{shlex.quote(quoted(name, value))}"
    )


def known_options() -> list[str]:
    """Dotted names of every option of the default run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return [name for name, _ in flat_options(OmegaConf.to_container(compose("train")))]


def knee(numerator: int, denominator: int, *, _root_: DictConfig) -> int:
    """The config's ${knee:a,b}: the step at the fraction a/b of the run's length."""
    steps = getattr(_root_.size, "steps", None)
    return round(steps * numerator / denominator) if isinstance(steps, int) else 0


def half(size: Any) -> Any:
    """The config's ${half:n}: n / 2 for an even n."""
    if isinstance(size, int) and size % 2:
        raise UserError(f"a minibatch of {size} has no halves: size.minibatch must be even")
    return size // 2 if isinstance(size, int) else size


def swept() -> str:
    """The config's ${swept:}: the options of a sweep's job other than scale, experiment and seed.

    `,ramp.rmax=5` in a sweep over ramp.rmax=3,5; empty for a single run. It makes every job's folder its own.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    options = re.sub(r"[^\w.,+=-]+", "_", HydraConfig.get().job.override_dirname)
    if len(options) > LONGEST:
        options = f"{options[:LONGEST]}-{zlib.crc32(options.encode()):08x}"
    return f",{options}" if options else ""


def proportional(part: int, whole: int, size: Any) -> int:
    """The config's ${proportional:25,32,n}: 25 / 32 of n, rounded down, at least 1."""
    return max(1, part * size // whole) if isinstance(size, int) else 1


def dataset(*, _root_: DictConfig) -> str:
    """The config's ${dataset:}: the name of the data set, see `naming.dataset_of`."""
    return naming.dataset_of(_root_.data) if isinstance(_root_.data, Mapping) else "unnamed"  # the schema names data


def run_group(*, _root_: DictConfig) -> str:
    """The config's ${run_group:}: the folder of the runs that belong together, see `naming.run_group`."""
    check_headers(_root_)
    return naming.run_group(_root_)


def check_headers(config: Mapping[Any, Any]) -> None:
    """Raise UserError if the file of scale=... or experiment=... lacks its header: Hydra reads it as a section then."""
    for group in ("scale", "experiment"):
        if isinstance(config.get(group), Mapping):
            raise UserError(without_header(group))


def without_header(group: str) -> str:
    typed = next((a for a in sys.argv[1:] if a.startswith(f"{group}=")), f"{group}=...")
    return (
        f"the file of {typed} must begin with the line `# @package _global_`, with no byte order mark before it: "
        "without it Hydra reads the file as options of something else"
    )


for resolver in (knee, half, swept, proportional, dataset, run_group):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def quoted(name: str, value: str) -> str:
    """An override quoted so that Hydra does not change its value."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return f'{name}="{escaped}"'


def as_hydra_reads(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments for Hydra: paths quoted, and for a sweep the options that name its jobs' folders."""
    sweep = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)
    result = [as_path(argument, sweep) for argument in arguments]
    return result + (placed(result) if sweep else [])


def as_path(argument: str, sweep: bool) -> str:
    """Quote the value of an option in PATHS if Hydra would misread it: ~, =, commas, parentheses, other letters.

    In a sweep, commas keep their meaning. The name of a group's file may look like a bool or a number: debug=true.
    """
    name, equals, value = argument.partition("=")
    override = parsed(argument)
    if override is not None and isinstance(override.value(), bool | int | float) and (CONFIGS / name).is_dir():
        return quoted(name, value)
    if not equals or name.lstrip("+") not in PATHS or not value:
        return argument
    plain = override is not None and isinstance(override.value(), str) and value == value.strip()
    return argument if plain or (sweep and override is not None) else quoted(name, value)


def parsed(argument: str) -> Override | None:
    """An argument as Hydra parses it; None if Hydra cannot parse it or it is not an override."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def placed(arguments: list[str]) -> list[str]:
    """Extra arguments for a sweep: options that are the same in every job are left out of the folders' names."""
    overrides = [o for o in map(parsed, arguments) if o is not None and not o.key_or_group.startswith("hydra")]
    same = [override.key_or_group for override in overrides if not override.is_sweep_override()]
    excluded = ",".join(f"'{name}'" for name in dict.fromkeys([*IN_EVERY_PLACE, *same]))
    return [f"hydra.job.config.override_dirname.exclude_keys=[{excluded}]"]
