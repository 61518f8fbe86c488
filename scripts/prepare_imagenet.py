"""Make a store of ImageNet, or of any data set of images: python scripts/prepare_imagenet.py SOURCE DEST

SOURCE is the folder with the official archives, with train/ and val/, or with Hugging Face's Arrow or Parquet
files. DEST becomes a store: a few big files, which a cluster's file system handles better than a million small
ones. A run reads it with data.root=DEST. Every image is decoded once. If the script stops for any reason, the same
command continues.
"""

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from batch_renorm.data.sources import find
from batch_renorm.data.store import prepare
from batch_renorm.errors import UserError
from batch_renorm.running.cli import explained

IMAGENET = {"classes": 1000, "training images": 1_281_167, "validation images": 50_000}


def main() -> None:
    options = parser().parse_args()
    for name, value in (("threads", options.threads), ("images-per-file", options.images_per_file)):
        if value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    print(f"looking at {options.source}", flush=True)
    found = find(options.source)
    images = {split: len(files.labels) for split, files in found.splits.items()}
    counts = {"classes": len(found.classes), "training images": images["train"], "validation images": images["val"]}
    print(f"{found.kind}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    for name, count in counts.items():
        if count != IMAGENET[name] and not options.any_counts:
            raise UserError(
                f"{options.source} has {count:,} {name}, ILSVRC-2012 has {IMAGENET[name]:,}: something is missing, or "
                "it is another data set; then say --any-counts"
            )
    quiet = not sys.stderr.isatty()  # a bar on a terminal, and a line now and then in a log file
    line = "{desc}: {n_fmt} of {total_fmt} images, {remaining} left\n" if quiet else None
    interval, total = 30 if quiet else 0.2, sum(images.values())
    with tqdm(total=total, desc="writing", unit="image", unit_scale=True, mininterval=interval, bar_format=line) as bar:
        prepare(found, options.dest, options.images_per_file, options.threads, bar.update)
    print(f"use it with data.root={options.dest}")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("source", type=Path, metavar="SOURCE")
    result.add_argument("dest", type=Path, metavar="DEST")
    result.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    result.add_argument("--images-per-file", type=int, default=8192, help="default: 8192, of ImageNet about 0.9 GB")
    result.add_argument("--any-counts", action="store_true", help="another data set than ILSVRC-2012")
    return result


if __name__ == "__main__":
    with explained():
        main()
