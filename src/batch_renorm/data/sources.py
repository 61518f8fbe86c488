"""Finds a data set below a folder and detects its kind: store, Hugging Face's tables, archives, folders of classes.

- `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, or `val/*.JPEG` with a list of labels beside it;
- ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar with the devkit, from image-net.org;
- folders written by scripts/prepare_imagenet.py or `datasets.save_to_disk`;
- Parquet files of `ILSVRC/imagenet-1k`, only for preparing a store.

Labels follow the sorted names of the classes; names that are all numbers are sorted as numbers.
"""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from batch_renorm.data import archives, tables
from batch_renorm.data.archives import TarFiles
from batch_renorm.data.files import Files, Found, PlainFiles, is_image, patiently, printable
from batch_renorm.data.labels import LISTS, class_names, flat_labels
from batch_renorm.errors import TransientReadError, UserError

VAL_FOLDERS = ("val", "validation", "valid", "test")
KAGGLE = Path("ILSVRC/Data/CLS-LOC")
SYSTEM = ("@eaDir", "#recycle", "@tmp", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that NAS, macOS and Windows make; so are hidden ones."""
BOTH = ("train", "val")
ARCHIVES = {"train": archives.TRAIN, "val": archives.VAL}

HOW_TO_GET = (
    "download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org "
    "into one folder and name that folder (docs/imagenet.md)"
)


def find(root: str | Path, splits: Sequence[str] = BOTH, class_list: str | None = None) -> Found:
    """The data set below `root`.

    Args:
        splits: "train" and "val", or one of them: ("val",) for validation images alone, in `root`/val or in `root`.
        class_list: a file that names the class of each label, one a line, or ILSVRC's devkit; None takes the labels
            from the classes that are there.

    Raises:
        UserError: no known data set, or an incomplete one; the message says what was looked for.
        TransientReadError: the disk failed for a moment, and again.
    """
    root = Path(os.path.expanduser(root))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"no images in {root}, which {what}: check the path; for ImageNet, {HOW_TO_GET}")
    try:
        return patiently(lambda: _find(root, tuple(splits), class_list), lambda: str(root))
    except TransientReadError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {error.filename or root}: {error.strerror or error}") from error


def _find(root: Path, splits: tuple[str, ...], class_list: str | None) -> Found:
    classes = None if class_list is None else class_names(Path(os.path.expanduser(class_list)))
    arrow = tables.is_arrow(root)
    if arrow or any(tables.parquet_shards(root, split) for split in splits):
        if classes is not None:
            raise UserError(f"{root} has a table with its own numbers of classes: leave out data.class_list")
        return tables.find_arrow(root, splits) if arrow else tables.find_parquet(root, splits)
    if any((root / ARCHIVES[split]).is_file() for split in splits):
        return find_archives(root, splits, classes)
    for base in (root, root / KAGGLE):
        train, val = base / "train", next((base / name for name in VAL_FOLDERS if (base / name).is_dir()), None)
        if "train" in splits and train.is_dir():
            if "val" in splits and val is None:
                raise UserError(f"{base} has training images but no validation images: looked for {base}/val/<class>/*")
            return find_folders(base, val, splits, classes, [root, base])
        if "train" not in splits and val is not None:
            if classes is None and train.is_dir():
                classes = in_order(contents(train, Counter())[0]) or None
            return find_folders(base, val, splits, classes, [root, base])
    if "train" not in splits:
        return find_folders(root, root, splits, classes, [root.parent])
    raise UserError(
        f"no images in {root}: looked for train/<class>/*.JPEG, {archives.TRAIN}, Arrow folders "
        f"(train/state.json) and Parquet files (data/train-*.parquet); {HOW_TO_GET}"
    )


def find_archives(root: Path, splits: tuple[str, ...], classes: list[str] | None) -> Found:
    """The official archives in a folder."""
    found: dict[str, Files] = {}
    for split in splits:
        if not (root / ARCHIVES[split]).is_file():
            raise UserError(f"{root} has other archives, not {ARCHIVES[split]}: download it from image-net.org, too")
    if "train" in splits:
        archive = root / archives.TRAIN
        by_class = archives.by_class(archive)
        classes, labels = labelled(by_class, classes, archive)
        found["train"] = TarFiles(archive, labels, [member for members in by_class.values() for member in members])
    if "val" in splits:
        archive = root / archives.VAL
        images = sorted(archives.images_in(archive), key=lambda member: os.path.basename(member[0]))
        classes, labels = flat_labels([name for name, *_ in images], classes, [root])
        found["val"] = TarFiles(archive, labels, images)
    return Found("archives", classes or [], found)


def find_folders(
    base: Path, val: Path | None, splits: tuple[str, ...], classes: list[str] | None, lists: list[Path]
) -> Found:
    """Folders of classes; the folders `lists` may have the labels of validation images that are all in one folder."""
    passed: Counter[str] = Counter()
    found: dict[str, Files] = {}
    names: list[str] = []
    if "train" in splits:
        train = base / "train"
        names, loose = contents(train, passed)
        passed["images beside the folders of classes"] += len(loose)
        if not names:
            raise UserError(f"{train} has no folders: training images must be in train/<class>/*.JPEG")
        listings = images_of(train, names, passed)
        empty = next((name for name in names if not listings[name]), None)
        if empty is not None:
            raise UserError(f"the class {empty} has no images: {train / empty} has no *.JPEG file")
        classes, labels = labelled(listings, classes, train)
        found["train"] = PlainFiles(train, labels, [path for paths in listings.values() for path in paths])
    if "val" in splits:
        assert val is not None
        inside, loose = contents(val, passed)
        if not loose and inside == ["images"] and "images" not in names:  # as in Tiny ImageNet
            val, (inside, loose) = val / "images", contents(val / "images", passed)
        listings = {name: listing for name, listing in images_of(val, inside, passed).items() if listing}
        if listings and loose:
            raise UserError(
                f"{val} has {len(loose):,} images beside {len(listings):,} folders of classes that have some: sorting "
                "them into folders was interrupted; finish that, or unpack the validation images again"
            )
        if not listings and not loose:
            raise UserError(f"{val} has no images: looked for {val}/<class>/*.JPEG and {val}/*.JPEG")
        if loose:
            images = sorted(loose)
            classes, labels = flat_labels(images, classes, [*lists, val, val.parent])
        else:
            names, images = names or list(listings), [path for paths in listings.values() for path in paths]
            classes, labels = labelled(listings, classes, val)
        found["val"] = PlainFiles(val, labels, images)
    remarks = []
    if sorted(names) != in_order(names):
        remarks.append(f"the classes of {base} are numbers and sorted as such: 0, 1, 2, ..., 10, and not 0, 1, 10, ...")
    if +passed:
        counts = ", ".join(f"{what} ({count:,})" for what, count in passed.most_common() if count)
        remarks.append(f"passed over in {base}: {counts}")
    return Found("folders of classes", classes or [], found, tuple(remarks))


def in_order(names: Collection[str]) -> list[str]:
    """Names of classes in the order of labels."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def labelled(images: dict[str, list[Any]], classes: list[str] | None, where: Path) -> tuple[list[str], np.ndarray]:
    """The classes in the order of labels, `classes` if they are known, and the label of every image, (n,) int64.

    Raises:
        UserError: a class is none of the known ones.
    """
    known = in_order(images) if classes is None else classes
    position = {name: label for label, name in enumerate(known)}
    if not set(images) & set(known) and all(name.isdecimal() and int(name) < len(known) for name in images):
        position = {name: int(name) for name in images}  # folders 0 to 999 of classes that a list names
    extra = next((name for name in in_order(images) if name not in position), None)
    if extra is not None:
        raise UserError(f"{where} has the class {printable(extra)}, which the training images or the list do not have")
    return known, np.repeat([position[name] for name in images], [len(of_class) for of_class in images.values()])


def contents(folder: Path, passed: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of the folders, sorted, and of the images in a folder; counts in `passed` what is neither.

    Raises:
        UserError: an image is a pipe or a device, where reading may never end, or a link leads to nothing or upwards.
    """
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name in SYSTEM or name.startswith("."):
                passed["hidden files and folders" if name.startswith(".") else f"folders {name}"] += 1
            elif entry.is_dir():
                if entry.is_symlink() and folder.resolve().is_relative_to(os.path.realpath(entry.path)):
                    raise UserError(f"{printable(entry.path)} is a link to a folder above it: remove it")
                folders.append(name)
            elif not is_image(name) and name not in LISTS:
                passed[f"files *{os.path.splitext(printable(name))[1]}"] += 1
            elif entry.is_file():
                images += [name] if is_image(name) else []
            else:
                raise UserError(
                    f"{printable(entry.path)} is no file but a pipe, a device or a link to nothing: remove it"
                )
    return sorted(folders), images


def images_of(folder: Path, names: list[str], passed: Counter[str]) -> dict[str, list[str]]:
    """For each folder named in a folder: the paths of all images below it."""

    def below(inner: str) -> tuple[list[str], Counter[str]]:
        here: Counter[str] = Counter()
        folders, images = contents(folder / inner, here)
        paths = [f"{inner}/{name}" for name in images]
        for name in folders:
            more, others = below(f"{inner}/{name}")
            paths, here = paths + more, here + others
        return paths, here

    with ThreadPoolExecutor(16) as pool:  # a network file system answers many requests at once
        listings = dict(zip(names, pool.map(below, names), strict=True))
    for _, others in listings.values():
        passed.update(others)
    return {name: paths for name, (paths, _) in listings.items()}


def on_this_node(data: dict[str, Any]) -> dict[str, Any]:
    """The data section with `root` in STAGED, the copy of the file or folder STAGE that slurm/train.sbatch has made.

    Both are environment variables. The config keeps the original path, so a run can resume on another node or be
    evaluated later. A node without the copy reads the original.

    Raises:
        UserError: STAGE is set, but `root` is neither STAGE nor below it, so nothing would read the copy.
    """
    original, copy = os.environ.get("STAGE"), os.environ.get("STAGED")
    if not original or not copy:
        return data
    staged, root = Path(original).resolve(), data.get("root")
    if root is None or not Path(root).resolve().is_relative_to(staged):
        raise UserError(f"STAGE={original} is copied to the nodes, but data.root={root} is not in it")
    if not Path(copy).exists():
        return data
    return data | {"root": str(Path(copy) / Path(root).resolve().relative_to(staged))}
