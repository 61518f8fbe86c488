"""Train one of the paper's experiments: `python train.py experiment=noniid_renorm`. `--help` lists the options."""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from batch_renorm.records.curve import accuracies
from batch_renorm.records.folder import Folder
from batch_renorm.running.cli import as_hydra_reads, explained
from batch_renorm.screen import print_remark


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "configs"), config_name="train")
def main(config: DictConfig) -> float | None:
    """Train, or print the result of a finished run; return the final val_top1, the objective of a search."""
    with explained():
        settings: Any = OmegaConf.to_container(config, resolve=True)
        if "torch" not in sys.modules and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print_remark(f"{settings['experiment']}, scale {settings['scale']}, seed {settings['seed']}: loading torch")
        from batch_renorm.running.run import train

        train(settings)
        found = accuracies(Folder(Path(settings["folder"]).expanduser()).curve)
        return found[max(found)] if found else None
    return None


if __name__ == "__main__":
    with explained():
        sys.argv[1:] = as_hydra_reads(sys.argv[1:])
        main()
