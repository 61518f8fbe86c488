"""Small data sets in the true formats of ILSVRC-2012: the same images as folders, archives, Parquet and Arrow."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ["n01440764", "n02123045", "n03000684", "n15075141"]
ILSVRC_IDS = {"n01440764": 3, "n02123045": 1, "n03000684": 4, "n15075141": 2}  # not in the order of wnids, as there
NAMES = ["tench, Tinca tinca", "tabby", "chain saw", "toilet tissue"]
VAL_LABELS = [2, 0, 3, 3, 1, 0, 2, 1]  # of ILSVRC2012_val_00000001 and so on


def encoded(seed, width=80, height=60, **options):
    """A JPEG of a random image with some structure."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(options.pop("mode", "RGB")).save(buffer, **({"format": "JPEG", "quality": 90} | options))
    return buffer.getvalue()


def train_images(per_class=3):
    """wnid -> file name -> bytes. One is a PNG under a JPEG's name, one a CMYK JPEG, one grey, as in ILSVRC."""
    kinds = {(0, 1): {"format": "PNG"}, (1, 0): {"mode": "CMYK"}, (2, 2): {"mode": "L"}}
    return {
        wnid: {
            f"{wnid}_{10 * number + 9}.JPEG": encoded(100 * label + number, **kinds.get((label, number), {}))
            for number in range(per_class)
        }
        for label, wnid in enumerate(WNIDS)
    }


def val_images():
    return {f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(1000 + i, 60, 80) for i in range(len(VAL_LABELS))}


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def cut_in_half(name):
    """Leaves the first half of a file; returns all of it."""
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])
    return whole


def write_folders(root, per_class=3, sorted_val=True):
    for wnid, files in train_images(per_class).items():
        for name, data in files.items():
            write(root / "train" / wnid / name, data)
    for (name, data), label in zip(val_images().items(), VAL_LABELS, strict=True):
        write(root / "val" / (WNIDS[label] if sorted_val else "") / name, data)
    return root


def write_flat(root):
    """Validation images in one folder, the devkit unpacked beside it."""
    write_folders(root, sorted_val=False)
    with tarfile.open(fileobj=io.BytesIO(devkit())) as archive:
        archive.extractall(root, filter="data")
    return root


def write_kaggle(root):
    """The competition's archive, unpacked: labels in a table, with boxes, in an order of its own."""
    write_folders(root / "ILSVRC/Data/CLS-LOC", sorted_val=False)
    rows = [
        f"{name.removesuffix('.JPEG')},{WNIDS[label]} 85 1 499 272 {WNIDS[label]} 1 2 3 4 \n"
        for name, label in zip(val_images(), VAL_LABELS, strict=True)
    ]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))
    return root


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def write_archives(root):
    root.mkdir(parents=True, exist_ok=True)
    train = train_images()
    outer = {f"{wnid}.tar": tar(dict(reversed(train[wnid].items()))) for wnid in reversed(WNIDS)}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar(outer))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar(val_images()))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    return root


def devkit(folder="ILSVRC2012_devkit_t12/data/", meta_name="meta.mat"):
    """The devkit's archive: ground truth as ILSVRC2012_IDs, and meta.mat, a MATLAB file of nested synsets."""
    from scipy.io import savemat

    names = "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"
    rows = [(float(i), wnid, "w", "g", 0.0, np.zeros((1, 0)), 0.0, 3.0) for wnid, i in ILSVRC_IDS.items()]
    rows.append((1001.0, "n00001740", "entity", "g", 2.0, np.array([[1.0, 2.0]]), 19.0, 0.0))
    synsets = np.array(rows, dtype=[(name, "O") for name in names]).reshape(-1, 1)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets}, do_compression=True)
    truth = "".join(f"{ILSVRC_IDS[WNIDS[label]]}\n" for label in VAL_LABELS)
    files = {"ILSVRC2012_validation_ground_truth.txt": truth.encode(), meta_name: meta.getvalue()}
    return gzip.compress(tar({folder + name: data for name, data in files.items()}), mtime=0)


def hugging_face():
    """The images as `datasets.load_dataset("ILSVRC/imagenet-1k")` has them: shuffled, names with the class."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rng = np.random.default_rng(0)

    def table(images, labels):
        rows = [
            {"image": {"bytes": data, "path": f"{name.removesuffix('.JPEG')}_{WNIDS[label]}.JPEG"}, "label": label}
            for (name, data), label in zip(images.items(), labels, strict=True)
        ]
        return datasets.Dataset.from_list([rows[i] for i in rng.permutation(len(rows))], features=features)

    train = {name: data for files in train_images().values() for name, data in files.items()}
    train_labels = [WNIDS.index(name.partition("_")[0]) for name in train]
    return datasets.DatasetDict({"train": table(train, train_labels), "validation": table(val_images(), VAL_LABELS)})


def write_arrow(root):
    hugging_face().save_to_disk(str(root), num_shards={"train": 2, "validation": 1})
    return root


def write_parquet(root):
    """data/train-00000-of-00002.parquet and so on, several row groups each."""
    (root / "data").mkdir(parents=True)
    for split, data in hugging_face().items():
        for number in range(2):
            path = root / "data" / f"{split}-{number:05d}-of-00002.parquet"
            data.shard(2, number, contiguous=True).to_parquet(str(path), batch_size=2)
    return root
