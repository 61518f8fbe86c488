"""Names of data sets, places and networks, used in run folders, tags and W&B groups."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGENET = {"classes": 1000, "train_images": 1281167, "val_images": 50000}


def dataset_of(data: Mapping[str, Any]) -> str:
    """The name of the data set in configs/data: glyphs, cifar100, imagenet, or the name of the user's folder.

    A folder is called imagenet only if the config requires ImageNet's numbers of classes and images, and never glyphs:
    its runs would stand among those of the scale's own data set. A part of the labels has its number, or the name of
    its list, behind this: imagenet-100.
    """
    kind = str(data.get("_target_")).rpartition(".")[2]
    if kind == "Images":
        if all(data.get(key) == number for key, number in IMAGENET.items()):
            name = "imagenet"
        else:
            name = as_name(Path(str(data["root"])).expanduser().absolute().name)
            name = f"{name}-folder" if name in ("imagenet", "glyphs") else name
        labels = data.get("labels")
        return name if labels is None else as_name(f"{name}-{Path(str(labels)).stem}")
    return as_name(str(data.get("name", kind)).lower())


def run_group(config: Mapping[str, Any]) -> str:
    """The folder of comparable runs: the scale, and the data set if it is not the scale's: imagenet, imagenet-cars."""
    dataset = as_name(str(config["dataset"]))
    return config["scale"] if dataset == config.get("dataset_of_scale") else f"{config['scale']}-{dataset}"


def model_of(config: Mapping[str, Any]) -> str:
    """The network's name: timm's name, or the name of the class."""
    return str(config["model"].get("name") or config["model"]["_target_"].rpartition(".")[2])


def tags_of(config: Mapping[str, Any], more: Sequence[str] = ()) -> list[str]:
    """Experiment, norm, minibatch, scale, data set, network and more tags, each once and cut to W&B's length."""
    names = [config["experiment"], config["norm"]["name"], config["minibatch"]["name"], config["scale"]]
    return [str(tag)[:64] for tag in dict.fromkeys([*names, config["dataset"], model_of(config), *more])]


def as_name(text: str) -> str:
    """Text that can be part of a path."""
    return re.sub(r"[^\w.+-]+", "_", text) or "unnamed"
