"""All measurements with an aim, and the aims: the layer, its inference and a step of Inception-v3 on this device."""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from benchmarks import norm, step
from benchmarks.measure import table

LAYER = {  # ratio to nn.BatchNorm2d, geometric mean over the shapes of Inception-v3's norms
    (layout, variant): aim
    for layout in ("contiguous", "channels_last")
    for variant, aim in (("whole batch", 1.3), ("groups of 16", 1.7), ("groups of 4", 1.7))
}
INFERENCE = {("contiguous", "whole batch"): 1.0, ("channels_last", "whole batch"): 1.0}
STEP = {"whole batch": 1.02, "groups of 4": 1.05}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, help="images of a step; default: 8 on a CPU, 224 on a GPU")
    parser.add_argument("--widest", type=int, default=299, help="leave wider inputs of the layer out")
    parser.add_argument("--network", choices=["inception_v3", "glyphs"], default="inception_v3", help="of the step")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the step's peak memory")


def run(args: Namespace) -> dict[str, Any]:
    """Measure on a CPU in float32 and eager; on a GPU in bfloat16 and channels_last, also compiled."""
    on_cpu = args.device == "cpu"
    kind = ["--dtypes", "float32"] if on_cpu else ["--dtypes", "bfloat16", "--layouts", "channels_last"]
    layer = ["--whole", "--widest", str(args.widest), *kind]
    passes = ["--network", args.network, "--batch", str(args.batch or (8 if on_cpu else 224)), "--groups", "0", "4"]
    passes += ["--layouts", *norm.LAYOUTS] if on_cpu else ["--dtype", "bfloat16", "--modes", "eager", "compiled"]
    passes += ["--no-memory"] if args.no_memory else []
    result: dict[str, Any] = {
        "norm": norm.run(part(norm, args, layer)),
        "inference": norm.run(part(norm, args, [*layer, "--inference"])),
        "step": step.run(part(step, args, passes)),
    }
    aims: list[dict[str, Any]] = [
        {"what": what, "aim": aim, **measured, "holds": measured["ratio"] <= aim}
        for what, aim, measured in compared(result, on_cpu)
    ]
    body = [
        [row["what"], f"{row['aim']:.2f}", f"{row['ratio']:.2f} +-{row['spread']:.2f}", "yes" if row["holds"] else "no"]
        for row in aims
    ]
    table("Ratio to nn.BatchNorm2d", ["", "at most", "measured", "holds"], body)
    return {"aims": aims, **result}


def part(module: ModuleType, args: Namespace, words: list[str]) -> Namespace:
    """The options of a part, as in its own command."""
    parser = ArgumentParser()
    module.options(parser)
    return parser.parse_args(words, Namespace(threads=args.threads, device=args.device, rounds=args.rounds))


def compared(result: dict, on_cpu: bool) -> Iterator[tuple[str, float, dict[str, float]]]:
    """The name of a measurement, its aim, and the ratio with its spread."""
    if on_cpu:
        for name, aims in (("norm", LAYER), ("inference", INFERENCE)):
            for (layout, variant), aim in aims.items():
                rows = [row["ratios"][variant] for row in result[name]["rows"] if row["layout"] == layout]
                yield f"{'layer' if name == 'norm' else name}, {layout}, {variant}", aim, mean(rows)
    for row in result["step"]["rows"]:
        for variant, ratio in row["ratios"].items():
            base = variant.removesuffix(step.KEPT)
            if base in STEP:
                what = f"step of {result['step']['network']}, {row['layout']}, {row['mode']}, {variant}"
                yield what, STEP[base], {"ratio": ratio["median"], "spread": ratio["spread"]}


def mean(ratios: list[dict[str, float]]) -> dict[str, float]:
    """The geometric mean of the ratios, and of the ratios shifted by their spread."""
    middle = statistics.geometric_mean(ratio["median"] for ratio in ratios)
    above = statistics.geometric_mean(ratio["median"] + ratio["spread"] for ratio in ratios)
    return {"ratio": middle, "spread": above - middle}
