"""All seven experiments, three seeds each, as one job array; called again, only what is neither finished nor queued.

    slurm/reproduce.sh --dry-run --nodes=2 --gpus-per-node=8 --time=24:00:00 scale=imagenet data.root=/shared/imagenet

prints every command and how far it has come; without --dry-run it submits. Other options --NAME=VALUE go to sbatch,
name=value to train.py for every run. PYTHON, SRUN_OPTIONS, ... are as in train.sbatch.
"""

import argparse
import getpass
import re
import shlex
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from batch_renorm.errors import UserError
from batch_renorm.records.config import differences
from batch_renorm.records.folder import Folder, read_mapping
from batch_renorm.reporting import paper
from batch_renorm.running.cli import CONFIGS, as_hydra_reads, explained
from batch_renorm.running.folder import with_places

SEVEN = sorted(paper.EXPERIMENTS)
FORMS = {"seeds": (r"\d{1,9}(,\d{1,9})*", "0,1,2"), "at_once": (r"[1-9]\d{0,5}", "4")}
"""Of options with numbers, and an example."""


def main() -> None:
    show_text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show_text, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true", help="submit nothing")
    parser.add_argument("--seeds", default="0,1,2", help="which seeds (0,1,2)")
    parser.add_argument("--experiments", default=",".join(SEVEN), help="which experiments (all)")
    parser.add_argument("--at-once", default="1000", help="so many runs at a time (all)")
    options, others = parser.parse_known_args()
    for_sbatch = [word for word in others if word.startswith("-")]
    check(vars(options), for_sbatch)
    overrides = as_hydra_reads([word for word in others if not word.startswith("-")])
    if taken := [word for word in overrides if re.match(r"\+*(experiment|seed|fresh)=", word)]:
        raise UserError(f"{taken[0]}: --experiments and --seeds choose the runs, and a finished one stays")

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        first = composed(SEVEN[0], 0, overrides)
        configs = {  # by array element
            seed * len(SEVEN) + SEVEN.index(experiment): composed(experiment, seed, overrides)
            for seed in sorted({int(seed) for seed in options.seeds.split(",")})
            for experiment in options.experiments.split(",")
        }
    if len({config["folder"] for config in configs.values()}) < len(configs):
        raise UserError("several runs have the same folder: write it with ${experiment} and ${seed}")
    # the array's name is a function of the place of its runs, so that elements of an earlier call are found by it
    name = f"reproduce-{first['scale']}-{zlib.crc32(str(Path(first['folder']).absolute()).encode()):08x}"
    queued, elements = queue(name, options.dry_run), []
    for element, config in configs.items():
        record = record_of(config)
        step, steps, state = record.get("step", 0), config["size"]["steps"], record.get("state", "new")
        text = queued.get(element, state if state in ("new", "finished") else f"{state}, {step}/{steps}")
        if state != "finished" and element not in queued:
            elements.append(str(element))
        words = shlex.join([f"experiment={config['experiment']}", f"seed={config['seed']}", *overrides])
        print(f"{text:<26}python train.py {words}")
    if not elements:
        print("nothing to submit")
        return
    command = ["sbatch", f"--job-name={name}", f"--array={','.join(elements)}%{options.at_once}"]
    command += ["--output=runs/slurm/%x-%A_%a.log", *for_sbatch]
    command += ["slurm/train.sbatch", "@" + ",".join(SEVEN), *overrides]
    print(f"to submit: {len(elements)} runs: {shlex.join(command)}")
    if not options.dry_run:
        Path("runs/slurm").mkdir(parents=True, exist_ok=True)
        raise SystemExit(subprocess.run(command).returncode)


def check(options: Mapping[str, Any], for_sbatch: Sequence[str]) -> None:
    """Raise UserError for a value that cannot be meant."""
    if unknown := set(options["experiments"].split(",")) - set(SEVEN):
        raise UserError(f"no experiment {min(unknown)} of the paper's; there are {', '.join(SEVEN)}")
    for name, (form, example) in FORMS.items():
        if not re.fullmatch(form, options[name]):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}={options[name]} must be like {option}={example}")
    for word in for_sbatch:
        if not word.startswith("--") or word.partition("=")[0] in ("--array", "--job-name"):
            raise UserError(f"{word}: options of sbatch are --name=value, without --array and --job-name")


def composed(experiment: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a run."""
    config = compose("train", [f"experiment={experiment}", f"seed={seed}", *overrides])
    if absent := OmegaConf.missing_keys(config):
        raise UserError(f"every run needs {', '.join(f'{name}=...' for name in sorted(absent))}")
    return with_places(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def record_of(config: dict[str, Any]) -> dict[str, Any]:
    """A run's run.json, empty before it starts; a run of another config in its folder must not pass for it."""
    folder = Folder(Path(config["folder"]))
    if folder.config.exists() and (differing := differences(read_mapping(folder.config), config)):
        how = "move it aside, or give these runs another place (folder=...)"
        raise UserError(f"{folder.path} holds a run of another config; it differs in {', '.join(differing)}: {how}")
    return folder.record()


def queue(name: str, dry_run: bool) -> dict[int, str]:
    """The state of every queued element of the array."""
    command = ["squeue", "--array", "--noheader", f"--user={getpass.getuser()}", f"--name={name}"]
    try:
        done = subprocess.run([*command, "--format=%K %T %F_%K"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if dry_run:
            return {}  # at a desk
        raise UserError(f"no SLURM answers here, submit from a login node of the cluster: {error}") from None
    rows = [line.split() for line in done.stdout.splitlines()]
    return {int(element): f"{state.lower()} as {job}" for element, state, job in rows}


if __name__ == "__main__":
    with explained():
        main()
