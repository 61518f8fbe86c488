"""A run's network as plain weights, for timm or torch alone.

    python scripts/export.py runs/imagenet/noniid_renorm/seed0 model.safetensors

Every Batch Renorm layer becomes the batchnorm with the same outputs at inference. timm can then load the weights
of a timm network: timm.create_model(NAME, num_classes=N, checkpoint_path=FILE).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from batch_renorm.models.timm_models import create, stock_weights
from batch_renorm.norm import to_batchnorm
from batch_renorm.norm.layers import has_layers
from batch_renorm.running.checkpoints import trained_model
from batch_renorm.running.cli import explained
from batch_renorm.running.schema import target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="FOLDER", help="a run folder")
    parser.add_argument("out", type=Path, metavar="FILE", help=".safetensors, or anything else for torch's format")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the run's newest readable one")
    options = parser.parse_args()
    run, model, path = trained_model(options.run, options.checkpoint)
    if not has_layers(model):
        weights = model.state_dict()
        use = f"load_state_dict of the same network with norm={run.config['norm']['name']}"
    elif target(run.config["model"]) is create:
        name, classes = run.config["model"]["name"], run.source.classes
        weights = stock_weights(model, name, classes, run.source.channels)
        use = f"timm.create_model({name!r}, num_classes={classes}, checkpoint_path={str(options.out)!r})"
    else:
        weights = to_batchnorm(model).state_dict()
        use = f"load_state_dict of the same network with nn.BatchNorm2d ({run.config['model']['_target_']})"
    # safetensors takes only contiguous tensors, whatever memory order training uses
    weights = {key: tensor.contiguous() for key, tensor in weights.items()}
    if options.out.suffix == ".safetensors":
        save_file(weights, options.out)
    else:
        torch.save(weights, options.out)
    print(f"{path} -> {options.out}\n{use}")


if __name__ == "__main__":
    with explained():
        main()
