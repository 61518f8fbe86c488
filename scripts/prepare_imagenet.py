"""Make a store of ImageNet, or of any data set of images: python scripts/prepare_imagenet.py SOURCE DEST

SOURCE is the folder with the official archives, with train/ and val/, or with Hugging Face's Arrow or Parquet
files. DEST becomes a store: a few big files, which a cluster's file system handles better than a million small
ones. A run reads it with data.root=DEST. Every image is decoded once. With --strips a run decodes no more of an image
than its crop needs, of the same pixels. If the script stops for any reason, the same command continues. --check
reads a store again and verifies all of it.

Exit status: 0 done; 2 user error, explained in one line; 75 stopped by a signal; 130 stopped by Ctrl-C.
"""

import argparse
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from batch_renorm.data.files import Found
from batch_renorm.data.sources import find
from batch_renorm.data.store import check, prepare
from batch_renorm.errors import UserError
from batch_renorm.running.cli import explained

IMAGENET = {"classes": 1000, "train": 1_281_167, "val": 50_000}


class Asked(KeyboardInterrupt):
    """A signal asked this program to end."""


def main() -> None:
    def hear(number: int, frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)  # it is ending
        raise Asked(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        work(parser().parse_args())
    except Asked as asked:
        heard = signal.Signals(asked.args[0])
        print(f"\nstopped by {heard.name}; run the same command again, what is written stays", file=sys.stderr)
        raise SystemExit(130 if heard is signal.SIGINT else os.EX_TEMPFAIL) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(options: argparse.Namespace) -> None:
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, got {options.processes}")
    if options.check:
        if options.dest is not None:
            raise UserError("--check takes the store alone: python scripts/prepare_imagenet.py --check STORE")
        compare(counts := counts_of(find(options.source)), options)
        with tqdm(total=counts["train"] + counts["val"], unit="image", desc="checking", unit_scale=True) as bar:
            manifest = check(options.source, options.processes, bar.update)
        print(f"{options.source} is as it was written: {summary(manifest)}")
        return
    if options.dest is None:
        raise UserError("say where the store goes: python scripts/prepare_imagenet.py SOURCE DEST")
    if options.images_per_file < 1:
        raise UserError(f"--images-per-file must be at least 1, got {options.images_per_file}")
    print(f"looking at {options.source}", flush=True)
    found = find(options.source)
    counts = counts_of(found)
    print(f"{found.kind}: {written(counts)}")
    compare(counts, options)
    with tqdm(total=counts["train"] + counts["val"], unit="image", desc="writing", unit_scale=True) as bar:
        manifest = prepare(found, options.dest, options.images_per_file, options.processes, bar.update, options.strips)
    print(f"{options.dest}: {summary(manifest)}\nuse it with data.root={options.dest}")


def compare(counts: dict[str, int], options: argparse.Namespace) -> None:
    """Check the numbers of classes and images."""
    for name, have in counts.items():
        want = getattr(options, name)
        if want is not None and have != want and not options.any_counts:
            raise UserError(
                f"{options.source} has {written({name: have})}, ILSVRC-2012 has {want:,}: something is missing, or it "
                f"is another data set; then say --any-counts, or --{name} {have}"
            )


def counts_of(found: Found) -> dict[str, int]:
    return {"classes": len(found.classes)} | {name: len(files.labels) for name, files in found.splits.items()}


def written(counts: dict[str, int]) -> str:
    names = {"classes": "classes", "train": "training images", "val": "validation images"}
    return ", ".join(f"{count:,} {names[name]}" for name, count in counts.items())


def summary(manifest: dict[str, Any]) -> str:
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    kinds: Counter[str] = Counter()
    for shard in shards:
        kinds.update(shard["kinds"])
    found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    size = sum(shard["bytes"] for shard in shards) / 1e9
    return f"{size:.2f} GB in {len(shards)} files; {found}"


def place(text: str) -> Path:
    """A path from the command line, which may begin with ~ and must not be empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a path is empty (is a variable of the shell not set?)")
    return Path(os.path.expanduser(text))


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("source", type=place, metavar="SOURCE")
    result.add_argument("dest", type=place, metavar="DEST", nargs="?")
    result.add_argument("--check", action="store_true", help="verify the store SOURCE")
    result.add_argument("--strips", action="store_true", help="write JPEGs, without loss, so that crops are read alone")
    result.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    result.add_argument("--images-per-file", type=int, default=8192, help="default: 8192, of ImageNet about 0.9 GB")
    for name, count in IMAGENET.items():
        result.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"must be there, default {count:,}")
    result.add_argument("--any-counts", action="store_true", help="another data set: whatever is there is right")
    return result


if __name__ == "__main__":
    with explained():
        main()
