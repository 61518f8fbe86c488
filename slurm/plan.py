"""What is left of the seven experiments: a line for each run, for slurm/reproduce.sh. Nothing is submitted here.

    python slurm/plan.py --seeds=0,1,2 --images-per-second=800 --ranks=8 scale=imagenet data.root=/shared/imagenet

Prints tab-separated index, state, step/steps, GPU-hours left, folder, and the shell-quoted arguments of train.py,
between a line "# name of the array" and one that says where the hours come from. The index is seed * 7 + experiment:
the same run is the same element of the array of the same name in every call.
"""

import argparse
import json
import shlex
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from batch_renorm.data.workers import balance, busy, workers_of_rank
from batch_renorm.errors import UserError
from batch_renorm.reporting import paper
from batch_renorm.running.cli import CONFIGS, explained
from batch_renorm.running.folder import differences, with_places
from batch_renorm.running.overrides import as_hydra_reads

EXPERIMENTS = tuple(sorted(paper.EXPERIMENTS))  # the seven; others of configs/experiment are not the paper's


@dataclass(frozen=True)
class Planned:
    """A run and, from its run.json, how far it has come; `images` are a step's."""

    index: int
    folder: Path
    steps: int
    images: int
    workers: int
    arguments: list[str]
    record: dict[str, Any]

    @property
    def step(self) -> int:
        return self.record.get("step", 0)

    @property
    def rate(self) -> float:
        """Images a second and rank so far, evaluations and starts included; 0 before the first record."""
        seconds = self.record.get("wall_seconds", 0) * self.record.get("ranks", 1)
        return self.step * self.images / seconds if seconds else 0.0

    def line(self, rate: float | None) -> str:
        hours = f"{(self.steps - self.step) * self.images / rate / 3600:.4f}" if rate else "?"
        words = " ".join(map(shlex.quote, self.arguments))
        cells = (self.index, self.record.get("state", "new"), f"{self.step}/{self.steps}", hours, self.folder, words)
        return "\t".join(map(str, cells))


def plan(experiments: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> Iterator[Planned]:
    """The runs seed by seed, so that a first whole comparison is there early.

    Raises:
        UserError: an option is missing, or a run's folder holds one of another config, which must not pass for this.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for seed in seeds:
            for experiment in experiments:
                arguments = [f"experiment={experiment}", f"seed={seed}", *overrides]
                composed = compose("train", arguments)
                if absent := OmegaConf.missing_keys(composed):
                    raise UserError(f"every run needs {', '.join(f'{name}=...' for name in sorted(absent))}")
                config: Any = with_places(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
                folder = Path(config["folder"]).absolute()  # reproduce.sh is in the repository
                earlier = read(folder / "config.yaml")
                differing = differences(yaml.safe_load(earlier), config) if earlier else []
                if differing:
                    raise UserError(
                        f"{folder} holds a run of another config; it differs in {', '.join(differing)}. Move it "
                        "aside, or give these runs another place (folder=...)"
                    )
                yield Planned(
                    index=seed * len(EXPERIMENTS) + EXPERIMENTS.index(experiment),
                    folder=folder,
                    steps=config["size"]["steps"],
                    images=config["size"]["workers"] * config["minibatch"]["size"],
                    workers=config["size"]["workers"],
                    arguments=arguments,
                    record=json.loads(read(folder / "run.json") or "{}"),
                )


def source(runs: Sequence[Planned], given: float | None, ranks: int | None) -> tuple[float | None, str]:
    """Images a second of one GPU among `ranks`, and where the number comes from; None if there is none."""
    if given is not None:
        part = busy(runs[0].workers, ranks) if ranks else 1.0
        idle = f", of which {ranks} ranks compute {part:.0%}" if part < 1 else ""
        return given * part, f"GPU-hours at {given:,.0f} images/s a GPU, as given{idle}; evaluations come on top"
    run = max(runs, key=lambda run: (run.rate > 0, run.step))
    if not run.rate:
        return None, "GPU-hours unknown until a run has been measured; or give --images-per-second=N, of one GPU"
    return run.rate, (
        f"GPU-hours at {run.rate:,.0f} images/s a rank, evaluations included, as {run.folder / 'run.json'} has it: "
        f"{run.step:,} steps in {run.record['wall_seconds'] / 3600:.2f} h on {run.record.get('ranks', 1)} x "
        f"{run.record.get('device', 'unknown device')}"
    )


def name(overrides: Sequence[str]) -> str:
    """The array's: a function of the place of its runs, before experiment and seed are filled in."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", list(overrides))
    template = OmegaConf.to_container(config)["folder"]  # type: ignore[index, call-overload]
    return f"reproduce-{config.scale}-{zlib.crc32(str(Path(template).absolute()).encode()):08x}"


def read(path: Path) -> str:
    """A file that may not be there yet; then an empty text."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="some of them (default: all)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images-per-second", type=float, help="that one GPU trains; else a run's own measurement")
    parser.add_argument("--ranks", type=int, help="of a run; says how even they are")
    parser.add_argument("overrides", nargs="*", help="options of train.py, for every run")
    options = parser.parse_args()
    experiments = options.experiments.split(",")
    unknown = sorted(set(experiments) - set(EXPERIMENTS))
    if unknown:
        raise UserError(f"no experiment {', '.join(unknown)} of the paper's; there are {', '.join(EXPERIMENTS)}")
    if options.images_per_second is not None and options.images_per_second <= 0:
        raise UserError(f"--images-per-second={options.images_per_second} must be above 0")
    try:
        seeds = sorted({int(seed) for seed in options.seeds.split(",")})
    except ValueError:
        raise UserError(f"--seeds={options.seeds}: give whole numbers, as in --seeds=0,1,2") from None
    taken = [o for o in options.overrides if o.split("=")[0] in ("experiment", "seed", "fresh")]
    if taken:
        raise UserError(f"{taken[0]}: the plan chooses experiment and seed itself, and never repeats a finished run")
    options.overrides = as_hydra_reads(options.overrides)
    runs = list(plan(experiments, seeds, options.overrides))
    if len({run.folder for run in runs}) < len(runs):
        raise UserError("several runs have the same folder: write it with ${experiment} and ${seed}")
    if options.ranks is not None:
        for workers in sorted({run.workers for run in runs}):
            workers_of_rank(workers, 0, options.ranks)  # raises if there are too many ranks
    rate, origin = source(runs, options.images_per_second, options.ranks)
    if options.ranks is not None and runs:
        text = balance(runs[0].workers, options.ranks)
        origin += f". {runs[0].workers} workers on {options.ranks} rank{'s' * (options.ranks > 1)}: {text}"
    print(f"# {name(options.overrides)}")
    for run in runs:
        print(run.line(rate))
    print(f"# {origin}")


if __name__ == "__main__":
    with explained():
        main()
