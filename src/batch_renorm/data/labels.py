"""Names of classes, and the lists that give the class of each validation image where all are in one folder or archive.

A list is the devkit's ground truth (numbers, whose classes are in meta.mat), one class a line in the order of file
names, or lines with image and class, as in Kaggle's LOC_val_solution.csv and Tiny ImageNet's val_annotations.txt.
"""

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from batch_renorm.data.files import STEM, is_image, looks_like, printable, reading
from batch_renorm.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
DEVKITS = (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tgz", f"{DEVKIT}.tar", DEVKIT)
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
LISTS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "synset_labels.txt",
         "val_annotations.txt")  # fmt: skip
LIST_AGAIN = "get the list again"


def in_order(names: Collection[str]) -> list[str]:
    """Names of classes in the order of labels: sorted, as numbers if all of them are numbers."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def labelled(of_image: Sequence[str], known: Sequence[str] | None, where: object) -> tuple[Sequence[str], np.ndarray]:
    """The classes in the order of labels, and the label of every image, (images,) int64.

    Raises a UserError, which begins with `where`, if a class is none of the known ones.

    Args:
        of_image: the class of every image.
        known: names in the order of labels; None takes the classes of the images.
    """
    names = set(of_image)
    known = in_order(names) if known is None else known
    position = {name: label for label, name in enumerate(known)}
    if not names & position.keys() and all(name.isdecimal() and int(name) < len(known) for name in names):
        position = {name: int(name) for name in names}  # folders 0 to 999 of classes that a list names
    if unknown := in_order(names - position.keys()):
        others = f"none of the {len(known):,} classes of the data set"
        raise UserError(f"{where} has the class {printable(unknown[0])}, which is {others}")
    return known, np.array([position[name] for name in of_image], dtype=np.int64)


def classes_of(names: Sequence[str], folders: Iterable[Path]) -> tuple[Path | str, list[str]]:
    """The first list that one of the folders has, and the class that it gives each of the images, sorted by name.

    Raises:
        UserError: there is no list, or one that does not fit the images.
    """
    folders = list(dict.fromkeys(filter(Path.is_dir, folders)))
    for path in (folder / name for folder in folders for name in (*LISTS, *DEVKITS)):
        if path.exists():
            of_image = read_devkit(path)[0] if path.name in DEVKITS else _from_list(path, names)
            if len(of_image) != len(names):
                raise UserError(
                    f"{path} has {len(of_image):,} labels for {len(names):,} validation images: the list or some "
                    "images are not whole"
                )
            return path, of_image
    behind = [re.search(r"_(n\d{8})\.[^.]*$", name) for name in names]
    if all(behind):
        return "a name among the validation images", [match[1] for match in behind if match]
    raise UserError(
        f"{len(names):,} validation images are in no class folders and have no list of labels: looked for "
        f"{DEVKIT}.tar.gz, {DEVKIT}/, {', '.join(LISTS)} in {', '.join(map(str, folders))}"
    )


def _from_list(path: Path, names: Sequence[str]) -> list[str]:
    rows = [re.split(r"[,\s]+", line.replace('"', "")) for line in _lines(path, "labels", LIST_AGAIN)]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    classes: dict[str, str] = {}
    for name, of_image, *_ in (row for row in rows if len(row) > 1 and row[1]):
        if classes.setdefault(_stem(name), of_image) != of_image:
            raise UserError(f"{path} has two classes for {printable(name)}: {LIST_AGAIN}")
    if missing := [name for name in names if _stem(name) not in classes]:
        raise UserError(f"{path} has no class for {printable(missing[0])}: {LIST_AGAIN}")
    return [classes[_stem(name)] for name in names]


def _stem(name: str) -> str:
    """An image's name without folders, the extension of images, and the class that Hugging Face's copy appends."""
    return re.sub(STEM, "", name) if is_image(name) else os.path.basename(name)


def _lines(path: Path, what: str, cure: str) -> list[str]:
    """The lines of a text file that have something in them."""
    with reading(path, f"a list of {what}, in UTF-8", cure):
        if looks_like(path):
            raise ValueError  # `reading` says what it looks like
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """The class (wnid) of each validation image as a devkit's ground truth says, and all of its classes, sorted."""
    from scipy.io import loadmat

    with reading(path, f"a devkit with {TRUTH} and {META}", f"download {DEVKIT}.tar.gz again"):
        if path.is_dir():
            truth, meta = ((path / name).read_bytes() for name in (TRUTH, META))
        else:
            with tarfile.open(path) as archive:
                members = {name: member for member in archive for name in (TRUTH, META) if member.name.endswith(name)}
                files: Any = [archive.extractfile(members[name]) for name in (TRUTH, META)]
                truth, meta = (file.read() for file in files)
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table if int(row["num_children"]) == 0}
        return [wnids[int(number)] for number in truth.split()], sorted(wnids.values())


def class_names(path: Path) -> list[str]:
    """The classes that a file names, one a line, or those of a devkit, sorted. Of `n01440764 tench` the wnid counts.

    Raises a UserError if it names none, or one twice.
    """
    if path.is_dir() or path.suffix in (".gz", ".tgz", ".tar"):
        return read_devkit(path)[1]
    lines = _lines(path, "classes", "it must have the name of a class on each line")
    names = [line.split()[0] if re.match(r"n\d{8}\b", line) else line for line in lines]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} names the class {twice[0]!r} twice")
    return names


def chosen_labels(chosen: int | str, classes: Sequence[str]) -> np.ndarray:
    """The labels that data.labels takes, ascending: the first so many, or those whose classes a file names.

    Raises a UserError if the data set does not have them.
    """
    if isinstance(chosen, str):
        return np.sort(labelled(class_names(Path(os.path.expanduser(chosen))), classes, f"data.labels={chosen}")[1])
    if not 1 <= chosen <= len(classes):
        raise UserError(f"data.labels={chosen} must be at least 1 and at most {len(classes):,}, the classes there are")
    return np.arange(chosen)
