"""A full training step of Inception-v3 and of the glyphs network, compared with the same network with nn.BatchNorm2d.

Images on the device, forward, losses with the auxiliary head, backward, clipping, RMSProp, mu and sigma,
the inference model: everything in a step except drawing data and writing rows. `--parts` times each of them, and
for glyphs also drawing.
"""

import copy
import multiprocessing
import resource
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from batch_renorm.data.glyphs import Glyphs
from batch_renorm.models.glyph_inception import GlyphInception
from batch_renorm.norm import StepStatistics, convert_batchnorm, set_limits
from batch_renorm.training.averaging import InferenceModel
from batch_renorm.training.optimizer import Optimization
from benchmarks.measure import BATCHNORM, ROOT, cell, clock, interleaved, ratios, spread, table

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # bfloat16 without sparsity, as published
LABELS = 24
PAPERS_IMAGES = 130_000 * 1600
DIFFERENT_IMAGES = 60_000  # of an evaluation: 50,000 for validation, 10,000 for training
# every second evaluation also visits the validation images in three kinds of minibatches
EVALUATE_EVERY, EVALUATION_IMAGES = 1000, DIFFERENT_IMAGES + 3 * 50_000 // 2
OPTIMIZATION = Optimization(
    lr=1e-4, lr_decay=1.0, lr_decay_steps=1, decay=0.9, momentum=0.9, eps=1.0, weight_decay=4e-5,
    clip_norm=2.0, label_smoothing=0.1, aux_weight=0.4,
)  # fmt: skip


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--network", choices=["inception_v3", "glyphs"], default="inception_v3")
    parser.add_argument("--batch", type=int, default=32, help="a multiple of the groups; the experiments have 32")
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 16, 4], help="0 is the whole batch")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["channels_last"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager"])
    parser.add_argument("--compile-mode", default="default", help="as torch.compile's mode")
    parser.add_argument("--image-size", type=int, help="default: 299, and 16 for glyphs")
    parser.add_argument("--parts", action="store_true", help="also the milliseconds of each part of a step")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the peak memory")


def run(args: Namespace) -> dict:
    rows = []
    for layout in args.layouts:
        for mode in args.modes:
            rows.append({"layout": layout, "mode": mode, **measured(args, layout, mode)})
            show(args, rows[-1])
    part = "step" if args.network == "inception_v3" else f"step-{args.network}"
    return {"part": part, "network": args.network, "batch": args.batch, "dtype": args.dtype, "rows": rows}


def measured(args: Namespace, layout: str, mode: str) -> dict:
    steps = {name: step(args, name, layout, mode) for name in variants(args, mode)}
    seconds = interleaved(steps, args)
    result: dict[str, dict] = {
        "ratios": ratios(seconds),
        "images_per_second": {
            name: spread([args.batch / value for value in values]) for name, values in seconds.items()
        },
    }
    if args.network == "inception_v3":
        result["hours_of_an_experiment"] = {
            name: PAPERS_IMAGES / rate["median"] / 3600 for name, rate in result["images_per_second"].items()
        }
        if mode == "eager":
            result["evaluation"] = evaluation(args, layout, result["images_per_second"])
    if args.parts:
        result["milliseconds"] = {name: milliseconds(args, name, layout, mode) for name in steps}
    if not args.no_memory:
        result["peak_mib"] = {name: peak(args, name, layout, mode, run) for name, run in steps.items()}
    limit = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in gpu(args)), None)
    if limit and args.dtype == "bfloat16":
        flops = operations(args, layout)
        result["of_matrix_units"] = {
            name: flops / statistics.median(values) / (limit * 1e12) for name, values in seconds.items()
        }
    return result


def evaluation(args: Namespace, layout: str, rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Images per second of the network in evaluation, in float32, and its fraction of a run's time.

    This is the network alone: images come from memory after the first evaluation, see `data/kept.py`.
    """
    ours = next(name for name in rates if name != BATCHNORM)
    model = network(args, ours).to(memory_format=LAYOUTS[layout]).eval()
    images = torch.randn(args.batch, 3, size_of(args), size_of(args), device=args.device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    with torch.no_grad():
        seconds = interleaved({ours: lambda: model(images)}, args)[ours]
    rate = args.batch / statistics.median(seconds)
    evaluating = EVALUATION_IMAGES / rate
    training = EVALUATE_EVERY * 1600 / rates[ours]["median"]
    return {"images_per_second": rate, "share": evaluating / (evaluating + training)}


def size_of(args: Namespace) -> int:
    return args.image_size or (configured("data/glyphs")["size"] if args.network == "glyphs" else 299)


def gpu(args: Namespace) -> str:
    return "" if args.device == "cpu" else torch.cuda.get_device_name(args.device)


def variants(args: Namespace, mode: str) -> list[str]:
    ours = ["whole batch" if not size else f"groups of {size}" for size in args.groups]
    return [BATCHNORM, *ours]


def network(args: Namespace, variant: str) -> nn.Module:
    """The network, with the same weights for every variant."""
    torch.manual_seed(0)
    if args.network == "glyphs":
        model: nn.Module = GlyphInception(LABELS, 1, nn.BatchNorm2d, **configured("model/glyph_inception"))
    else:
        import timm

        model = timm.create_model("inception_v3", aux_logits=True)
    if variant != BATCHNORM:
        number = variant.rpartition(" ")[2]
        convert_batchnorm(model, group_size=int(number) if number.isdigit() else None)
    return model.to(args.device)


def step(args: Namespace, variant: str, layout: str, mode: str) -> Callable[[], object]:
    phases = parts(args, variant, layout, mode)

    def once() -> None:
        for phase in phases.values():
            phase()

    return once


def parts(args: Namespace, variant: str, layout: str, mode: str) -> dict[str, Callable[[], object]]:
    """The parts of a step, in order."""
    model = network(args, variant).to(memory_format=LAYOUTS[layout])
    glyphs = args.network == "glyphs"
    images = torch.randn(args.batch, 1 if glyphs else 3, size_of(args), size_of(args), device=args.device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(LABELS, (args.batch,), device=args.device)
    optimizer = OPTIMIZATION.optimizer(model)
    parameters = list(model.parameters())
    ours = variant != BATCHNORM
    statistics_ = StepStatistics(model) if ours else None
    average = InferenceModel(model, 0.9999) if ours else StockAverage(model)
    call = torch.compile(model, mode=args.compile_mode) if mode == "compiled" else model
    dtype = torch.bfloat16 if args.dtype == "bfloat16" else None
    loss = torch.zeros(())

    def forward() -> None:
        nonlocal loss
        if statistics_ is not None:
            set_limits(statistics_.layers.values(), 3.0, 5.0)
        with torch.autocast(args.device.partition(":")[0], dtype) if dtype else nullcontext():
            output = call(images)
            logits, *auxiliary = output if isinstance(output, tuple) else (output,)
            loss = F.cross_entropy(logits, labels, label_smoothing=OPTIMIZATION.label_smoothing)
            for extra in auxiliary:
                loss = loss + OPTIMIZATION.aux_weight * F.cross_entropy(extra, labels)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, OPTIMIZATION.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, Callable[[], object]] = {"forward": forward, "backward": lambda: loss.backward(), "update": update}
    if statistics_ is not None:
        found["mu and sigma"] = statistics_.update
    found["average"] = lambda: average.update_parameters(model)
    return found


def milliseconds(args: Namespace, variant: str, layout: str, mode: str) -> dict[str, float]:
    """Medians of the parts of a step. The host waits for a GPU after each part, so their sum exceeds a step."""
    taken: dict[str, list[float]] = {}
    phases = parts(args, variant, layout, mode)
    if args.network == "glyphs":
        phases = {"drawing": drawing(args)} | phases
    for counts in [False] + [True] * args.rounds:
        for name, phase in phases.items():
            seconds = clock(phase, args)
            if counts:
                taken.setdefault(name, []).append(1000 * seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def drawing(args: Namespace) -> Callable[[], Tensor]:
    """Draw a step's images, which comes before the step."""
    source = Glyphs(**configured("data/glyphs"))
    keys = source.fetch("train", np.arange(args.batch) * source.images_per_label["train"] // 4)
    return lambda: source.images([keys], torch.device(args.device))


def configured(name: str) -> dict[str, Any]:
    """The options that a config gives to its class."""
    options = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    return {option: value for option, value in options.items() if option != "_target_"}


class StockAverage(AveragedModel):
    """The average of a network with nn.BatchNorm2d, whose counters are not floats."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(copy.deepcopy(model), use_buffers=True)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        mine, theirs = (
            [t.detach() for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()] for m in (self.module, model)
        )
        torch._foreach_lerp_(mine, theirs, 0.1)


def peak(args: Namespace, variant: str, layout: str, mode: str, run: Callable[[], object]) -> float:
    """Peak memory of a step, MiB: allocated on a GPU; on a CPU the resident memory of a separate process."""
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(resident, (args, variant, layout, mode))


def resident(args: Namespace, variant: str, layout: str, mode: str) -> float:
    torch.set_num_threads(args.threads)
    run = step(args, variant, layout, mode)
    for _ in range(2):
        run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def operations(args: Namespace, layout: str) -> int:
    """The number of floating point operations in a step."""
    with FlopCounterMode(display=False) as counter:
        step(args, BATCHNORM, layout, "eager")()
    return counter.get_total_flops()


def show(args: Namespace, row: dict) -> None:
    header = ["", f"ratio to {BATCHNORM}", "images/s"]
    extra = {
        "hours_of_an_experiment": "hours of 130k steps, on 1 | 8",
        "peak_mib": "peak MiB",
        "of_matrix_units": "of the matrix units",
    }
    header += [label for name, label in extra.items() if name in row]
    rows = []
    for name, ratio in row["ratios"].items():
        cells = [name, cell(ratio), cell(row["images_per_second"][name])]
        if "hours_of_an_experiment" in row:
            hours = row["hours_of_an_experiment"][name]
            cells.append(f"{hours:,.1f} | {hours / 8:,.1f}")
        cells += [f"{row['peak_mib'][name]:.0f}"] if "peak_mib" in row else []
        cells += [f"{row['of_matrix_units'][name]:.1%}"] if "of_matrix_units" in row else []
        rows.append(cells)
    if "evaluation" in row:
        found = row["evaluation"]
        print(
            f"\nan evaluation's network: {found['images_per_second']:.3g} images/s in float32; one every "
            f"{EVALUATE_EVERY:,} steps would take {found['share']:.1%} of a run (aim: 5%)"
        )
    title = f"{args.network}, batch {args.batch}, {args.dtype}, {row['layout']}, {row['mode']}"
    table(title, header, rows)
    if "milliseconds" in row:
        by_variant = row["milliseconds"]
        names = list(dict.fromkeys(part for ms in by_variant.values() for part in ms))
        cells = [[name, *(f"{ms.get(part, 0):.2f}" for part in names)] for name, ms in by_variant.items()]
        table("milliseconds of its parts", ["", *names], cells)
