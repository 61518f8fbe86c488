"""What limits a step of the paper on 8 H100: computed from counted operations and bytes, not measured.

A real step and a real evaluation of Inception-v3 run on a GPU without data (`fake_gpu.py`). The time of a call is
its bytes at the memory's rate or its operations at the matrix units' rate, whichever is longer; both rates are the
published peaks times an assumed fraction. Overlapping parts are not added: the longest one limits the step.
Measured numbers will be added.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from batch_renorm.data.workers import busy, split_evenly
from benchmarks.fake_gpu import Call, Counting
from benchmarks.fake_training import STEPS, FakeTraining, on_fake_cuda
from benchmarks.measure import table
from benchmarks.step import DIFFERENT_IMAGES, EVALUATE_EVERY, EVALUATION_IMAGES

WORKERS, MINIBATCH = 50, 32
H100 = {  # as published for the SXM version; the attained fractions are options
    "bytes_per_second": 3.35e12,
    "bf16_flops": 989e12,
    "tf32_flops": 494e12,
    "link_bytes_per_second": 450e9,  # NVLink, each direction
    "host_bytes_per_second": 64e9,  # PCIe 5.0 x16, each direction
}
KINDS = {  # kinds of operations; all others are "other small ones"
    "norms": ("triton statistics", "triton settle", "triton apply", "triton backward_"),
    "colours": ("triton add_up", "triton finish"),
    "convolutions": ("convolution", "mm", "addmm", "bmm"),
    "pools, concatenations, sums of branches": (
        "avg_pool2d", "max_pool2d", "_adaptive", "cat", "add", "mean", "slice_backward", "narrow",
    ),
    "casts and copies": ("_to_copy", "copy_", "clone", "contiguous"),
    "optimiser, average, statistics": ("_foreach", "lerp", "stack", "linalg_vector_norm"),
}  # fmt: skip


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--memory", type=float, default=0.75, help="part of the memory's peak rate that is attained")
    parser.add_argument("--units", type=float, default=0.25, help="part of the matrix units' peak that is attained")
    parser.add_argument("--image-size", type=int, default=299)
    parser.add_argument("--cores", type=int, default=96, help="CPU cores of the node")
    parser.add_argument("--core-images", type=float, default=471, help="images/s that a core prepares, see `data`")
    parser.add_argument("--launch", type=float, default=7e-6, help="seconds that the host takes for an operation")


def run(args: Namespace) -> dict[str, Any]:
    share = len(split_evenly(range(WORKERS), args.ranks)[0]) * MINIBATCH
    batch = 500
    with on_fake_cuda(args.image_size, ranks=args.ranks) as fake:
        fake.step(6999, [share])
        count = fake.step(7000, [share])
        parameters = sum(p.numel() for p in fake.module.model.parameters())
        evaluated = evaluation(fake, batch)
    step = by_kind(count.calls, args, H100["bf16_flops"])
    images = WORKERS * MINIBATCH
    seconds = sum(row["seconds"] for row in step.values())
    launching = len(count.calls) * args.launch
    limits = {
        "the network, on the fullest rank": seconds,
        "launching its operations": launching,
        "images to the device": 3 * args.image_size**2 * share / (H100["host_bytes_per_second"] * args.memory),
        "gradients among the ranks": 4 * parameters * 2 * (1 - 1 / args.ranks)
        / (H100["link_bytes_per_second"] * args.memory),
        "preparing the images, on all cores": images / (args.cores * args.core_images),
    }  # fmt: skip
    longest = max(limits, key=limits.__getitem__)
    visit = sum(row["seconds"] for row in by_kind(evaluated, args, H100["tf32_flops"]).values()) / batch
    evaluating = visit * EVALUATION_IMAGES / args.ranks
    training = EVALUATE_EVERY * limits[longest]
    result = {
        "subject": f"{args.ranks} H100, on paper",
        "computed": "from counted operations and bytes at assumed rates; no GPU has run it",
        "assumed": {**H100, "memory": args.memory, "units": args.units, "launch_seconds": args.launch,
                    "cores": args.cores, "images_per_core": args.core_images},
        "images_of_the_fullest_rank": share,
        "busy": busy(WORKERS, args.ranks),
        "operations": len(count.calls),
        "step": step,
        "limits": limits,
        "longest": longest,
        "images_per_second": images / limits[longest],
        "hours_of_an_experiment": STEPS * limits[longest] / 3600,
        "evaluation": {
            "seconds": evaluating, "share": evaluating / (evaluating + training),
            "first_decodes_core_seconds": DIFFERENT_IMAGES / args.core_images,
        },
    }  # fmt: skip
    show(result)
    return result


def evaluation(fake: FakeTraining, images: int) -> list[Call]:
    """The calls of an evaluation batch, in float32."""
    counting, model = Counting(), fake.module.inference_model(7000)
    with torch.no_grad(), counting as count:
        fetched = fake.source.fetch("val", np.arange(images), None)
        model(fake.source.images([fetched], fake.module.device))
    return count.calls


def by_kind(calls: Iterable[Call], args: Namespace, flops: float) -> dict[str, dict[str, float]]:
    """Calls, bytes, operations and seconds for each kind."""
    sums: dict[str, Counter[str]] = {}
    for call in calls:
        kind = next((kind for kind, names in KINDS.items() if call.name.startswith(names)), "other small ones")
        row = sums.setdefault(kind, Counter())
        seconds = max(call.bytes / (H100["bytes_per_second"] * args.memory), call.flops / (flops * args.units))
        row.update({"calls": 1, "bytes": call.bytes, "flops": call.flops, "seconds": seconds})
    return {kind: dict(row) for kind, row in sorted(sums.items(), key=lambda item: -item[1]["seconds"])}


def show(result: dict[str, Any]) -> None:
    body = [
        [
            kind,
            f"{row['calls']:,.0f}",
            f"{row['bytes'] / 1e9:.1f}",
            f"{row['flops'] / 1e12:.2f}",
            f"{1e3 * row['seconds']:.1f}",
        ]
        for kind, row in result["step"].items()
    ]
    title = f"A step of {result['images_of_the_fullest_rank']} images on paper (nothing is measured)"
    table(title, ["", "operations", "GB", "TFLOP", "ms"], body)
    table("What may bound it, ms", ["", ""], [[name, f"{1e3 * s:.1f}"] for name, s in result["limits"].items()])
    evaluation = result["evaluation"]
    print(
        f"\n{result['longest']} bounds it: {result['images_per_second']:,.0f} images/s, "
        f"{result['hours_of_an_experiment']:.1f} hours of {STEPS:,} steps; the ranks are busy {result['busy']:.0%} of "
        f"a step. An evaluation every {EVALUATE_EVERY:,} steps takes {evaluation['seconds']:.1f} s on average, "
        f"{evaluation['share']:.1%} of the time (aim: 5%)"
    )
