"""Finds a data set below a folder and detects its kind: store, Hugging Face folder, archives, folders of classes.

- `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, or `val/*.JPEG` with a list of labels beside it;
- ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit, from image-net.org;
- folders written by scripts/prepare_imagenet.py or `datasets.save_to_disk`;
- Parquet files of `ILSVRC/imagenet-1k`, only for preparing a store.

Class folders may have any names: labels follow the sorted names of the folders in `train`.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from batch_renorm.data import archives, arrow
from batch_renorm.data.files import Files, Found, PlainFiles, is_image
from batch_renorm.data.labels import flat_labels
from batch_renorm.errors import UserError

VAL_FOLDERS = ("val", "validation", "valid", "test")
KAGGLE = Path("ILSVRC/Data/CLS-LOC")

HOW_TO_GET = (
    "download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org "
    "into one folder and name that folder (docs/imagenet.md)"
)


def find(root: str | Path) -> Found:
    """The data set below `root`.

    Raises:
        UserError: no known data set, or an incomplete one; the message says what was looked for.
    """
    root = Path(os.path.expanduser(root))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"no images in {root}, which {what}: check the path; for ImageNet, {HOW_TO_GET}")
    try:
        return _find(root)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root}: {error.strerror or error}") from error


def _find(root: Path) -> Found:
    """The data set below an existing folder."""
    if arrow.is_arrow(root):
        return arrow.find(root)
    if arrow.parquet_shards(root, "train"):
        return arrow.find_parquet(root)
    if (root / archives.TRAIN).exists():
        return archives.find(root)
    for base in (root, root / KAGGLE):
        if (base / "train").is_dir():
            return find_folders(base, root)
    raise UserError(
        f"no images in {root}: looked for train/<class>/*.JPEG, {archives.TRAIN}, Arrow folders "
        f"(train/state.json) and Parquet files (data/train-*.parquet); {HOW_TO_GET}"
    )


def find_folders(base: Path, root: Path) -> Found:
    """Folders of classes; `root` may have a list of labels if the validation images are in one folder."""
    val = next((base / name for name in VAL_FOLDERS if (base / name).is_dir()), None)
    if val is None:
        raise UserError(f"{base} has training images but no validation images: looked for {base / 'val'}/<class>/*")
    classes = subfolders(base / "train")
    if not classes:
        raise UserError(f"{base / 'train'} has no folders: training images must be in train/<class>/*.JPEG")
    splits: dict[str, Files] = {"train": in_classes(base / "train", classes)}
    inside, loose = subfolders(val), images_in(val)
    filled = [name for name in inside if name in set(classes) and has_images(val / name)]
    if filled and loose:
        raise UserError(
            f"{val} has {len(loose):,} images beside {len(filled):,} folders of classes that have some: sorting "
            "them into folders was interrupted; finish that, or unpack the validation images again"
        )
    flat = val / "images" if not loose and "images" in inside and not filled else val
    if loose or flat != val:
        names = sorted(images_in(flat))
        if not names:
            raise UserError(f"{flat} has no images: looked for {flat}/*.JPEG")
        labels = flat_labels(names, classes, [root, base, val, val.parent])
        splits["val"] = PlainFiles(flat, labels, names)
    else:
        extra = set(inside) - set(classes)
        if extra:
            raise UserError(f"{val} has the class {min(extra)}, which {base / 'train'} has not")
        if not filled:
            raise UserError(f"{val} has no images: looked for {val}/<class>/*.JPEG and {val}/*.JPEG")
        splits["val"] = in_classes(val, filled, classes)
    return Found("folders of classes", classes, splits)


def has_images(folder: Path) -> bool:
    return bool(images_in(folder)) or any(has_images(folder / name) for name in subfolders(folder))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """Names of the images directly in a folder, not sorted, without hidden files (._name on macOS)."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if is_image(entry.name)]


def images_below(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it."""
    found = images_in(folder)
    for inner in subfolders(folder):
        found += [f"{inner}/{name}" for name in images_below(folder / inner)]
    return found


def in_classes(folder: Path, present: list[str], classes: list[str] | None = None) -> PlainFiles:
    """The images of class folders. `classes` are the names of the labels, `present` the folders found here."""
    position = {name: label for label, name in enumerate(classes or present)}
    with ThreadPoolExecutor(16) as pool:  # a network file system answers many requests at once
        listings = list(pool.map(lambda name: images_below(folder / name), present))
    if classes is None:
        for name, listing in zip(present, listings, strict=True):
            if not listing:
                raise UserError(f"the class {name} has no images: {folder / name} has no *.JPEG file")
    labels = np.repeat([position[name] for name in present], [len(listing) for listing in listings])
    names = [f"{name}/{image}" for name, listing in zip(present, listings, strict=True) for image in listing]
    return PlainFiles(folder, labels.astype(np.int64), names)
