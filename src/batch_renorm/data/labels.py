"""Lists: the labels of validation images that are all in one folder or archive, and names of classes.

A list gives the class of each image: the devkit's ground truth (numbers, whose classes are in meta.mat), a list of
synsets (one class per line, in the order of file names), or lines with image and class, as in Kaggle's
LOC_val_solution.csv and Tiny ImageNet's val_annotations.txt. Or names say it: ILSVRC2012_val_00000001_n01751748.JPEG.
"""

import codecs
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from batch_renorm.data.files import STEM, is_image, printable, reading
from batch_renorm.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
LISTS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "synset_labels.txt",
         "val_annotations.txt")  # fmt: skip
DEVKIT_AGAIN, LIST_AGAIN = f"download {DEVKIT}.tar.gz again", "get the list again"


def flat_labels(names: list[str], classes: list[str] | None, folders: list[Path]) -> tuple[list[str], np.ndarray]:
    """The classes in the order of labels, and the label of every image, (images,) int64.

    Args:
        names: the images' names, sorted.
        classes: names in the order of labels; None takes those that the list names, sorted.
        folders: folders to search for lists of labels.

    Raises:
        UserError: no list, or a list that does not fit the images or classes.
    """
    where, chosen = _listed(names, folders)
    known = sorted(set(chosen)) if classes is None else classes
    position = {name: label for label, name in enumerate(known)}
    unknown = next((name for name in chosen if name not in position), None)
    if unknown is not None:
        raise UserError(f"{where} names the class {unknown!r}, which the training images do not have")
    return known, np.array([position[name] for name in chosen], dtype=np.int64)


def _listed(names: list[str], folders: list[Path]) -> tuple[object, list[str]]:
    """The first list that there is, and its class for each image."""
    for folder in dict.fromkeys(folders):
        for name in LISTS:
            if (folder / name).is_file():
                return folder / name, _from_list(folder / name, names)
        if (devkit := devkit_in(folder)) is not None:
            truth, synsets = read_devkit(devkit)
            _check_number(devkit, len(truth), len(names))
            return devkit, [synsets[number] for number in truth]
    behind = [re.search(r"_(n\d{8})\.[^.]*$", name) for name in names]
    if all(behind):
        return "a name among the validation images", [match[1] for match in behind if match]
    raise UserError(
        f"{len(names):,} validation images are in no class folders and have no list of labels: looked for "
        f"{DEVKIT}.tar.gz, {DEVKIT}/, {', '.join(LISTS)} in {', '.join(map(str, dict.fromkeys(folders)))}"
    )


def text_of(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 as editors on Windows write it."""
    text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    if "\0" in text or text.lstrip()[:5].lower() in ("<!doc", "<html"):
        raise ValueError("no text")  # an HTML page is named by `reading`
    return text


def _from_list(path: Path, names: list[str]) -> list[str]:
    with reading(path, "a list of labels, in UTF-8", LIST_AGAIN):
        lines = text_of(path.read_bytes()).replace('"', "").splitlines()
    rows = [(number, re.split(r"[,\s]+", line.strip())) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{path} is empty: {LIST_AGAIN}")
    if all(len(row) == 1 for _, row in rows):
        _check_number(path, len(rows), len(names))
        return [row[0] for _, row in rows]
    classes: dict[str, str] = {}
    for number, row in rows:
        if len(row) < 2 or not row[1]:
            raise UserError(f"{path} has no class in line {number} ({row[0]}): {LIST_AGAIN}")
        if classes.setdefault(stem(row[0]), row[1]) != row[1]:
            raise UserError(f"{path} has two classes for {row[0]}, the second in line {number}: {LIST_AGAIN}")
    missing = next((name for name in names if stem(name) not in classes), None)
    if missing is not None:
        raise UserError(f"{path} has no line for {printable(missing)}: {LIST_AGAIN}")
    return [classes[stem(name)] for name in names]


def _check_number(path: Path, labels: int, images: int) -> None:
    if labels != images:
        raise UserError(
            f"{path} has {labels:,} labels for {images:,} validation images: the list or some images are not whole"
        )


def devkit_in(folder: Path) -> Path | None:
    """A devkit in a folder: its archive, its folder, or the folder itself if it contains `data`."""
    names = (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tgz", f"{DEVKIT}.tar", f"{DEVKIT}/data/{TRUTH}", f"{DEVKIT}/data/{META}",
             f"data/{TRUTH}", f"data/{META}")  # fmt: skip
    path = next((folder / name for name in names if (folder / name).exists()), None)
    return path.parent.parent if path is not None and path.name in (TRUTH, META) else path


def read_devkit(path: Path) -> tuple[list[int], dict[int, str]]:
    """The devkit's number of each validation image's class, and the synset (wnid) of each number."""
    contents = {}
    with reading(path, "the devkit's archive", DEVKIT_AGAIN):
        if path.is_dir():
            places = {name: path / "data" / name for name in (TRUTH, META)}
            contents = {name: place.read_bytes() for name, place in places.items() if place.is_file()}
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    folder, name = os.path.split(member.name)
                    if member.isfile() and name in (TRUTH, META) and os.path.basename(folder) == "data":
                        contents[name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    if len(contents) < 2:
        raise UserError(f"{path} lacks data/{TRUTH} or data/{META}: {DEVKIT_AGAIN}")
    with reading(path, "a devkit whose meta.mat can be read", DEVKIT_AGAIN):
        synsets = _synsets(contents[META])
    with reading(path, f"a devkit whose {TRUTH} has a number a line", DEVKIT_AGAIN):
        truth = [int(word) for word in text_of(contents[TRUTH]).split()]
    unknown = next((number for number in truth if number not in synsets), None)
    if unknown is not None:
        raise UserError(f"{path} gives an image the number {unknown}, and its meta.mat no class to it: {DEVKIT_AGAIN}")
    return truth, synsets


READ_META = """
import io, json, sys
from scipy.io import loadmat
rows = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
print(json.dumps([(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in rows if int(row["num_children"]) == 0]))
"""


@cache
def _synsets(meta: bytes) -> dict[int, str]:
    """The table of a devkit's meta.mat: number of a class (1 to 1000) -> its synset (wnid)."""
    # in a process of its own, because a wrong byte in the file can crash scipy
    done = subprocess.run([sys.executable, "-c", READ_META], input=meta, capture_output=True, check=False)
    if done.returncode:
        raise ValueError("it is not a file of MATLAB with the table synsets")
    rows = json.loads(done.stdout)
    result = dict(rows)
    if sorted(result) != list(range(1, len(rows) + 1)) or len(set(result.values())) != len(rows):
        raise ValueError("its classes are not numbered from 1 on, each once")
    return result


def class_names(path: Path) -> list[str]:
    """The classes that a file names, one a line, or those of a devkit, sorted. Of `n01440764 tench` the wnid counts.

    Raises:
        UserError: it names none, or one twice.
    """
    if path.is_dir() or path.suffix in (".gz", ".tgz", ".tar"):
        return sorted(read_devkit(devkit_in(path) or path)[1].values())
    with reading(path, "a list of classes, in UTF-8", "it must have the name of a class on each line"):
        lines = [line.strip() for line in text_of(path.read_bytes()).splitlines() if line.strip()]
    names = [line.split()[0] if re.match(r"n\d{8}\b", line) else line for line in lines]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if not names or twice is not None:
        raise UserError(f"{path} names {f'the class {twice!r} twice' if names else 'no class'}")
    return names


def chosen_labels(chosen: int | str, classes: Sequence[str]) -> np.ndarray:
    """The labels that data.labels takes, ascending: the first so many, or those whose classes a file names.

    Raises:
        UserError: the data set does not have them.
    """
    if isinstance(chosen, int):
        if not 1 <= chosen <= len(classes):
            raise UserError(
                f"data.labels={chosen} must be at least 1 and at most {len(classes):,}, the classes there are"
            )
        return np.arange(chosen)
    position = {name: label for label, name in enumerate(classes)}
    names = class_names(Path(os.path.expanduser(chosen)))
    if (unknown := next((name for name in names if name not in position), None)) is not None:
        raise UserError(f"data.labels={chosen} names the class {unknown!r}, which the data set does not have")
    return np.array(sorted(position[name] for name in names))


def stem(name: str) -> str:
    """An image's name without folders, the extension of images, and the class that Hugging Face's copy appends."""
    return re.sub(STEM, "", name) if is_image(name) else os.path.basename(name)
