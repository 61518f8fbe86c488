"""Labels of validation images that are in one folder, or one archive, as ILSVRC hands them out.

A list names the class of each image: the devkit's ground truth (numbers, with the class of each number in
meta.mat), a list of synsets (a class a line, in the order of file names), or lines of image and class, as
Kaggle's LOC_val_solution.csv and Tiny ImageNet's val_annotations.txt have them.
"""

import io
import re
import tarfile
from pathlib import Path

import numpy as np

DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", f"{DEVKIT}/data/meta.mat"
LISTS = ("LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "synset_labels.txt",
         "val_annotations.txt")  # fmt: skip


def flat_labels(names: list[str], classes: list[str], folders: list[Path]) -> np.ndarray:
    """The label of every image, (images,) int64.

    Args:
        names: of the images, sorted.
        classes: names in the order of labels.
        folders: where lists of labels are looked for.

    Raises:
        ValueError: no list, or one that does not fit the images or classes.
    """
    found, chosen = _listed(names, folders)
    position = {name: label for label, name in enumerate(classes)}
    unknown = next((name for name in chosen if name not in position), None)
    if unknown is not None:
        raise ValueError(f"{found} names the class {unknown!r}, which the training images do not have")
    return np.array([position[name] for name in chosen], dtype=np.int64)


def _listed(names: list[str], folders: list[Path]) -> tuple[Path, list[str]]:
    """The first list found, and the class that it gives to each image."""
    for folder in folders:
        for name in LISTS:
            if (folder / name).is_file():
                return folder / name, _from_list(folder / name, names)
        for devkit in (folder / f"{DEVKIT}.tar.gz", folder / DEVKIT, folder):
            try:
                truth, meta = _devkit(devkit)
            except (FileNotFoundError, NotADirectoryError):
                continue
            classes = synsets(meta)
            numbers = [int(word) for word in truth.decode().split()]
            _fits(devkit, len(numbers), len(names))
            return devkit, [classes[number] for number in numbers]
    raise ValueError(
        f"{len(names):,} validation images are in no class folders and have no list of labels: looked for "
        f"{DEVKIT}.tar.gz, {DEVKIT}/, {', '.join(LISTS)} in {', '.join(str(f) for f in dict.fromkeys(folders))}"
    )


def _from_list(path: Path, names: list[str]) -> list[str]:
    rows = [re.split(r"[,\s]+", line.strip()) for line in path.read_text().splitlines() if line.strip()]
    if len(rows[0]) == 1:
        _fits(path, len(rows), len(names))
        return [row[0] for row in rows]
    by_stem = {row[0].rpartition("/")[2].partition(".")[0]: row[1] for row in rows}
    missing = next((name for name in names if name.partition(".")[0] not in by_stem), None)
    if missing is not None:
        raise ValueError(f"{path} has no line for {missing}")
    return [by_stem[name.partition(".")[0]] for name in names]


def _fits(path: Path, labels: int, images: int) -> None:
    if labels != images:
        raise ValueError(f"{path} has {labels:,} labels for {images:,} validation images")


def _devkit(path: Path) -> tuple[bytes, bytes]:
    """Ground truth and meta.mat of a devkit, an archive or a folder (its own, or the one that it is in)."""
    if path.suffix == ".gz":
        with tarfile.open(path) as archive:
            truth, meta = (archive.extractfile(name) for name in (TRUTH, META))
            assert truth is not None
            assert meta is not None
            return truth.read(), meta.read()
    data = path / "data"
    return (data / Path(TRUTH).name).read_bytes(), (data / Path(META).name).read_bytes()


def synsets(meta: bytes) -> dict[int, str]:
    """The devkit's meta.mat: number of a class (1 to 1000) -> its synset (wnid)."""
    from scipy.io import loadmat

    rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
