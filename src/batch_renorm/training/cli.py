"""One clear line for what a user got wrong, instead of a traceback or a page of Hydra's."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from batch_renorm.training.errors import DiskFullError, NotFiniteError, Stopped

CONFIGS = Path(__file__).parents[3] / "configs"


def knee(numerator: int, denominator: int, *, _root_: OmegaConf) -> int:
    """The config's ${knee:a,b}: the step at the fraction a/b of the run's length."""
    steps = _root_.size.steps  # type: ignore[attr-defined]
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"size.steps must be a whole number of at least 1, got {steps}")
    return round(steps * numerator / denominator)


def half(size: int) -> int:
    """The config's ${half:n}: n / 2 for an even n."""
    if size % 2:
        raise ValueError(f"a minibatch of {size} has no halves: size.minibatch must be even")
    return size // 2


def proportional(part: int, whole: int, size: int) -> int:
    """The config's ${proportional:25,32,n}: 25 / 32 of n, rounded down, at least 1."""
    return max(1, part * size // whole)


OmegaConf.register_new_resolver("knee", knee, replace=True)
OmegaConf.register_new_resolver("half", half, replace=True)
OmegaConf.register_new_resolver("proportional", proportional, replace=True)


@contextmanager
def explained() -> Iterator[None]:
    """End the program with one line on bad input; let anything else through with its traceback.

    Stands around composing the config and, within Hydra's main, around the run: Hydra would print a
    page of its own before an exception leaves its main.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises composition errors, too
    try:
        yield
    except MissingConfigException as error:
        exit_with(missing(error))
    except (ConfigCompositionException, OverrideParseException, OmegaConfBaseException, HydraException) as error:
        exit_with(composition(error))
    except NotFiniteError as error:  # every rank finds it; one says it
        if os.environ.get("RANK", "0") == "0":
            exit_with(str(error))
        raise SystemExit(2) from None
    except (ValueError, DiskFullError) as error:
        exit_with(str(error))
    except Stopped as stopped:
        raise SystemExit(stopped.status) from None


def exit_with(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if "SUBMITIT_EXECUTOR" in os.environ and sys.exception():
        raise  # in a sweep's job on a cluster: the command that waits for it gets the exception, and explains it
    raise SystemExit(2)


def missing(error: MissingConfigException) -> str:
    """An unknown choice of a group, with the near misses among the known ones."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if name == "submitit_slurm":
        return "hydra/launcher=slurm needs hydra-submitit-launcher: pip install hydra-submitit-launcher"
    options = list(error.options or [])
    if not options:
        return str(error).splitlines()[0]
    close = get_close_matches(name, options, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? All: " if close else "one of: "
    return f"no {group}={name}; {hint}{', '.join(options)}"


def composition(error: Exception) -> str:
    """An unknown option, with the near misses among all options of the default run."""
    text = str(error).strip() or str(error.__cause__)
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    match = re.search(r"Could not override '([^']+)'", text)
    if match is None:
        return text.splitlines()[0]
    name = match[1]
    close = get_close_matches(name, known_options(), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else " (python train.py --help lists them)"
    return f"no option {name}{hint}"


def known_options() -> list[str]:
    """Dotted names of every option of the default run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from batch_renorm.training.folder import leaves

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return [name for name, _ in leaves(OmegaConf.to_container(compose("train")))]
