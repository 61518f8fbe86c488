"""Errors in one clear line, instead of a traceback or Hydra's long message."""

import errno
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from batch_renorm.errors import DiskFullError, NotFiniteError, Stopped, TransientReadError, UserError
from batch_renorm.records.config import flat_options
from batch_renorm.running.overrides import quoted, without_header

CONFIGS = Path(__file__).parents[3] / "configs"
MENDABLE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EROFS,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
"""Errors of files that a user can mend."""
TRANSIENT = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
}  # fmt: skip
"""Errors of files that may pass: a disk, a network or a file server has failed for a moment."""


@contextmanager
def explained() -> Iterator[None]:
    """End the program with one line on what a user can mend (status 2) or try again (75); a bug has its traceback.

    Use it around composing the config and, inside Hydra's main, around the run: Hydra would print its
    own message before an exception leaves its main.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises composition errors, too
    try:
        yield
    except MissingConfigException as error:
        exit_with(missing(error))
    except OverrideParseException as error:
        exit_with(unread(error.override))
    except (ConfigCompositionException, OmegaConfBaseException, HydraException) as error:
        exit_with(composition(error))
    except NotFiniteError as error:  # every rank raises it; rank 0 prints it
        if os.environ.get("RANK", "0") == "0":
            exit_with(str(error))
        raise SystemExit(2) from None
    except (UserError, DiskFullError) as error:
        exit_with(str(error))
    except yaml.YAMLError as error:
        exit_with(" ".join(str(error).split()))
    except UnicodeDecodeError:
        if (path := not_utf8()) is None:
            raise
        exit_with(f"{path} is not UTF-8 text: save it as UTF-8")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        if isinstance(error, TransientReadError) or error.errno in TRANSIENT:
            exit_with(f"{what}; this may pass: run the same command again", os.EX_TEMPFAIL)
        if error.filename is None or error.errno not in MENDABLE:
            raise
        exit_with(f"cannot read or write {what}")
    except Stopped as stopped:
        raise SystemExit(stopped.status) from None
    except RuntimeError as error:
        if not str(error).startswith("Unknown plugin class"):
            raise
        exit_with("hydra/sweeper=search needs hydra-optuna-sweeper: pip install hydra-optuna-sweeper")
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


def missing(error: MissingConfigException) -> str:
    """The message for an unknown choice in a group, with similar known choices."""
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
    """The message for an unknown option, with similar options of the default run."""
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
    close = [other for other in get_close_matches(name, known_options(), n=3, cutoff=0.6) if other != name]
    hint = f"; did you mean {' or '.join(close)}?" if close else " (python train.py --help lists them)"
    return f"no option {name}{hint}"


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
