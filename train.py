"""Train one of the paper's experiments: `python train.py experiment=noniid_renorm`. `--help` lists the options."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from batch_renorm.training.cli import as_hydra_reads, explained


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "configs"), config_name="train")
def main(config: DictConfig) -> None:
    from batch_renorm.training.run import train

    with explained():
        train(config)


if __name__ == "__main__":
    with explained():
        sys.argv[1:] = as_hydra_reads(sys.argv[1:])
        main()
