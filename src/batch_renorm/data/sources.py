"""Finds a data set below a folder, in any of the layouts of docs/imagenet.md.

Labels follow the sorted names of the classes; names that are all numbers are sorted as numbers.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

from batch_renorm.data import tables
from batch_renorm.data.archives import ARCHIVES, TarFiles, images_in
from batch_renorm.data.files import Files, Found, PlainFiles, is_image, printable
from batch_renorm.data.labels import LISTS, class_names, classes_of, in_order, labelled
from batch_renorm.errors import UserError

VAL_FOLDERS = ("val", "validation", "valid", "test")
KAGGLE = Path("ILSVRC/Data/CLS-LOC")
SYSTEM = ("@eaDir", "#recycle", "@tmp", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that NAS, macOS and Windows make; so are hidden ones."""
BOTH = ("train", "val")

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
        OSError: a folder cannot be read.
    """
    root = Path(os.path.expanduser(root))
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"no images in {root}, which {what}: check the path; for ImageNet, {HOW_TO_GET}")
    classes = None if class_list is None else class_names(Path(os.path.expanduser(class_list)))
    if (found := tables.find(root, splits)) is not None:
        if classes is not None:
            raise UserError(f"{root} has a table with its own numbers of classes: leave out data.class_list")
        return found
    archives = {split: root / ARCHIVES[split] for split in splits}
    if any(archive.is_file() for archive in archives.values()):
        return find_images("archives", root, archives, classes)
    base = root / KAGGLE if (root / KAGGLE).is_dir() else root
    train, val = base / "train", next((base / name for name in VAL_FOLDERS if (base / name).is_dir()), None)
    if "train" in splits and not train.is_dir():
        raise UserError(
            f"no images in {root}: looked for train/<class>/*.JPEG, {ARCHIVES['train']}, Arrow folders "
            f"(train/state.json) and Parquet files (data/train-*.parquet); {HOW_TO_GET}"
        )
    if "train" in splits and val is None:
        raise UserError(f"{base} has training images but no validation images: looked for {base}/val/<class>/*")
    if classes is None and train.is_dir():  # they also number the classes of validation images alone
        classes = in_order(contents(train, [])[0]) or None
    places = {"train": train, "val": val or root}
    return find_images("folders of classes", root, {split: places[split] for split in splits}, classes)


def find_images(kind: str, root: Path, places: dict[str, Path], classes: Sequence[str] | None) -> Found:
    """Archives or folders of images: the place of each split, and the classes in the order of labels, if known."""
    found: dict[str, Files] = {}
    passed: list[str] = []
    remarks = []
    for split, place in places.items():
        make: Callable[..., Files] = PlainFiles
        if place.is_dir():
            folders, images = images_below(place, passed)
        elif place.exists():
            folders, positions = images_in(place)
            images, make = list(positions), partial(TarFiles, places=positions)
        else:
            raise UserError(f"{root} has other archives, not {place.name}: download it from image-net.org, too")
        beside = sorted(image for image in images if "/" not in image)
        images = [image for image in images if "/" in image]
        of_image = [image.partition("/")[0] for image in images]
        if split == "train":
            passed += ["images beside the folders of classes"] * len(beside)
            check_train(place, {*folders, *(classes or ())}, of_image)
        else:
            if not beside and set(of_image) == {"images"} and "images" not in (classes or ()):  # as in Tiny ImageNet
                beside, images = sorted(images), []
            if images and beside:
                raise UserError(
                    f"{place} has {len(beside):,} images beside {len(images):,} in folders of classes: sorting them "
                    "into folders was interrupted; finish that, or unpack the validation images again"
                )
            if not images and not beside:
                raise UserError(f"{place} has no images: looked for {place}/<class>/*.JPEG and {place}/*.JPEG")
        where: Path | str = place
        if not images:
            images = beside
            where, of_image = classes_of(images, (root, place.parent, place))
        classes, labels = labelled(of_image, classes, where)
        if in_order(classes) == list(classes) != sorted(classes):
            remarks = [f"the classes of {root} are numbers and sorted as such: 0, 1, 2, ..., 10, and not 0, 1, 10, ..."]
        found[split] = make(place, labels, images)
    if passed:
        counts = ", ".join(f"{what} ({count:,})" for what, count in Counter(passed).most_common())
        remarks.append(f"passed over in {root}: {counts}")
    return Found(kind, list(classes or ()), found, tuple(remarks))


def check_train(place: Path, classes: Collection[str], of_image: Sequence[str]) -> None:
    """Raise a UserError unless there are classes, and training images of each."""
    if not classes:
        where = "train/<class>/*.JPEG, or in a tar of n01440764.tar and so on"
        raise UserError(f"{place} has no folders: training images must be in {where}, as image-net.org has it")
    if absent := in_order(set(classes) - set(of_image)):
        name = printable(absent[0])
        raise UserError(f"{place} has no images of the class {name}: looked for {place.name}/{name}/*.JPEG")


def images_below(folder: Path, passed: list[str]) -> tuple[list[str], list[str]]:
    """The folders in a folder, and the paths of all images below it."""

    def below(inner: str) -> list[str]:
        folders, images = contents(folder / inner, passed)
        deeper = (path for name in folders for path in below(f"{inner}/{name}"))
        return [*(f"{inner}/{name}" for name in images), *deeper]

    folders, images = contents(folder, passed)
    with ThreadPoolExecutor(16) as pool:  # a network file system answers many requests at once
        return folders, [*images, *chain.from_iterable(pool.map(below, folders))]


def contents(folder: Path, passed: list[str]) -> tuple[list[str], list[str]]:
    """Names of the folders, sorted, and of the images in a folder; adds the kind of whatever is neither to `passed`.

    Raises:
        UserError: an image is a pipe or a device, where reading may never end, or a link leads to nothing or upwards.
    """
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name in SYSTEM or name.startswith("."):
                passed.append("hidden files and folders, and those of systems")
            elif entry.is_dir():
                if entry.is_symlink() and folder.resolve().is_relative_to(os.path.realpath(entry.path)):
                    raise UserError(f"{printable(entry.path)} is a link to a folder above it: remove it")
                folders.append(name)
            elif is_image(name):
                if not entry.is_file():
                    what = "no file but a pipe, a device or a link to nothing"
                    raise UserError(f"{printable(entry.path)} is {what}: remove it")
                images.append(name)
            elif name not in LISTS:
                passed.append(f"files *{os.path.splitext(printable(name))[1]}")
    return sorted(folders), images
