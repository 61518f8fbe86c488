"""Labels of validation images that are all in one folder or archive, as in ILSVRC.

A list gives the class of each image: the devkit's ground truth (numbers, whose classes are in meta.mat),
a list of synsets (one class per line, in the order of file names), or lines with image and class, as in
Kaggle's LOC_val_solution.csv and Tiny ImageNet's val_annotations.txt.
"""

import codecs
import json
import os
import re
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np

from batch_renorm.data.files import reading, stem
from batch_renorm.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
LISTS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "synset_labels.txt",
         "val_annotations.txt")  # fmt: skip
GET_AGAIN = f"download {DEVKIT}.tar.gz again"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte order marks, which editors on Windows write at the beginning, and their encodings."""


def flat_labels(names: list[str], classes: list[str], folders: list[Path]) -> np.ndarray:
    """The label of every image, (images,) int64.

    Args:
        names: the images' names, sorted.
        classes: names in the order of labels.
        folders: folders to search for lists of labels.

    Raises:
        UserError: no list, or a list that does not fit the images or classes.
    """
    found, chosen = _listed(names, folders)
    position = {name: label for label, name in enumerate(classes)}
    unknown = next((name for name in chosen if name not in position), None)
    if unknown is not None:
        raise UserError(f"{found} names the class {unknown!r}, which the training images do not have")
    return np.array([position[name] for name in chosen], dtype=np.int64)


def _listed(names: list[str], folders: list[Path]) -> tuple[Path, list[str]]:
    """The first list found, and its class for each image."""
    for folder in folders:
        for name in LISTS:
            if (folder / name).is_file():
                return folder / name, _from_list(folder / name, names)
        for devkit in (*(folder / f"{DEVKIT}{end}" for end in (".tar.gz", ".tgz", ".tar")), folder / DEVKIT, folder):
            if (parts := _devkit(devkit)) is not None:
                return devkit, _from_devkit(devkit, *parts, names)
    raise UserError(
        f"{len(names):,} validation images are in no class folders and have no list of labels: looked for "
        f"{DEVKIT}.tar.gz, {DEVKIT}/, {', '.join(LISTS)} in {', '.join(str(f) for f in dict.fromkeys(folders))}"
    )


def chosen_labels(chosen: int | str, classes: list[str]) -> np.ndarray:
    """The labels that data.labels takes, ascending: the first so many, or those whose classes a file names.

    Args:
        chosen: a number, or the path of a file with the name of a class on each line; words behind it do not count.
        classes: names in the order of labels.

    Raises:
        UserError: no such labels.
    """
    if isinstance(chosen, int):
        if not 1 <= chosen <= len(classes):
            raise UserError(
                f"data.labels={chosen} must be at least 1 and at most {len(classes):,}, the classes there are"
            )
        return np.arange(chosen)
    path = Path(os.path.expanduser(chosen))
    with reading(path, "a list of classes", "data.labels is a number, or a file with the name of a class on each line"):
        lines = [line.strip() for line in text(path.read_bytes(), path).splitlines() if line.strip()]
    position = {name: label for label, name in enumerate(classes)}
    named = [line if line in position else line.split()[0] for line in lines]
    unknown = next((name for name in named if name not in position), None)
    if unknown is not None or not named:
        what = "names no class" if unknown is None else f"names the class {unknown!r}, which the data set does not have"
        raise UserError(f"data.labels={chosen} {what}")
    return np.unique([position[name] for name in named])


def text(data: bytes, path: Path) -> str:
    """A text file's content, in UTF-8 or the encoding of its byte order mark."""
    encoding = next((encoding for mark, encoding in MARKS if data.startswith(mark)), "utf-8")
    with reading(path, "text", "save it as UTF-8 text, or get it again"):
        result = data.decode(encoding)
        if "\0" in result:
            raise UserError("it has zero bytes")
        return result


def _from_list(path: Path, names: list[str]) -> list[str]:
    cure = "get the list again"
    with reading(path, "a list of labels", cure):
        lines = text(path.read_bytes(), path).replace('"', "").splitlines()
    rows = [(number, re.split(r"[,\s]+", line.strip())) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{path} is empty: {cure}")
    if looks_like_html(lines):
        raise UserError(f"{path} is an HTML page, as servers send in place of a file: {cure}")
    if all(len(row) == 1 for _, row in rows):
        _fits(path, len(rows), len(names))
        return [row[0] for _, row in rows]
    by_stem: dict[str, str] = {}
    for number, row in rows:
        if len(row) < 2 or not row[1]:
            raise UserError(f"{path} has no class in line {number} ({row[0]}): {cure}")
        if by_stem.setdefault(stem(row[0]), row[1]) != row[1]:
            raise UserError(f"{path} has two classes for {row[0]}, the second in line {number}: {cure}")
    missing = next((name for name in names if stem(name) not in by_stem), None)
    if missing is not None:
        raise UserError(f"{path} has no line for {missing}: {cure}")
    return [by_stem[stem(name)] for name in names]


def looks_like_html(lines: list[str]) -> bool:
    return lines[0].lstrip().lower().startswith(("<!doctype", "<html"))


def _fits(path: Path, labels: int, images: int) -> None:
    if labels != images:
        raise UserError(
            f"{path} has {labels:,} labels for {images:,} validation images: the list or some images are not whole"
        )


def _devkit(path: Path) -> tuple[bytes, bytes] | None:
    """Ground truth and meta.mat of a devkit: an archive, its folder, or the folder that contains `data`.

    None if there is no devkit.
    """
    if path.suffix:
        if not path.is_file():
            return None
        with reading(path, "the devkit's archive", GET_AGAIN), tarfile.open(path) as archive:
            inside = {tuple(Path(os.path.normpath(m.name)).parts[-2:]): m for m in archive.getmembers() if m.isfile()}
            parts = [inside.get(("data", name)) for name in (TRUTH, META)]
            files = [archive.extractfile(part) for part in parts if part is not None]
            contents = [file.read() for file in files if file is not None]
    else:
        places = [path / "data" / name for name in (TRUTH, META)]
        if not any(place.is_file() for place in places):
            return None
        with reading(path, "the devkit", GET_AGAIN):
            contents = [place.read_bytes() for place in places if place.is_file()]
    if len(contents) < 2:
        raise UserError(f"{path} lacks data/{TRUTH} or data/{META}: {GET_AGAIN}")
    return contents[0], contents[1]


def _from_devkit(path: Path, truth: bytes, meta: bytes, names: list[str]) -> list[str]:
    with reading(path, "a devkit whose meta.mat can be read", GET_AGAIN):
        classes = synsets(meta)
    with reading(path, f"a devkit whose {TRUTH} has a number a line", GET_AGAIN):
        numbers = [int(word) for word in text(truth, path).split()]
    _fits(path, len(numbers), len(names))
    unknown = next((number for number in numbers if number not in classes), None)
    if unknown is not None:
        raise UserError(f"{path} gives an image the number {unknown}, and its meta.mat no class to it: {GET_AGAIN}")
    return [classes[number] for number in numbers]


READ_META = """
import io, json, sys
from scipy.io import loadmat
rows = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
print(json.dumps([(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in rows if int(row["num_children"]) == 0]))
"""


@cache
def synsets(meta: bytes) -> dict[int, str]:
    """The devkit's meta.mat: number of a class (1 to 1000) -> its synset (wnid).

    Raises:
        UserError: the file cannot be read, or numbers or synsets are missing or repeated.
    """
    # A separate process reads it, because scipy may crash on a file with a wrong byte.
    read = subprocess.run([sys.executable, "-c", READ_META], input=meta, capture_output=True, check=False)
    if read.returncode:
        raise UserError("it is not a file of MATLAB with the table synsets")
    rows = json.loads(read.stdout)
    result = dict(rows)
    if sorted(result) != list(range(1, len(rows) + 1)) or len(set(result.values())) != len(rows):
        raise UserError("its classes are not numbered from 1 on, each once")
    return result
