"""A full training step of Inception-v3 and of the glyphs network, compared with the same network with nn.BatchNorm2d.

Images on the device, forward, losses with the auxiliary head, backward, clipping, RMSProp, mu and sigma,
the inference model: everything in a step except drawing data and writing rows. `--parts` times each of them.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from batch_renorm.models.glyph_inception import GlyphInception
from batch_renorm.norm import StepStatistics, convert_batchnorm, set_limits
from batch_renorm.training.averaging import InferenceModel
from batch_renorm.training.optimizer import Optimization, RMSProp
from benchmarks.measure import BATCHNORM, ROOT, cell, clock, interleaved, ratios, spread, table

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LABELS = 24
OPTIMIZATION = Optimization(
    lr=1e-4, lr_decay=1.0, lr_decay_steps=1, weight_decay=4e-5, clip_norm=2.0,
    make=partial(RMSProp, decay=0.9, momentum=0.9, eps=1.0),
)  # fmt: skip


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--network", choices=["inception_v3", "glyphs"], default="inception_v3")
    parser.add_argument("--batch", type=int, default=32, help="a multiple of the groups; the experiments have 32")
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 16, 4], help="0 is the whole batch")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["channels_last"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--compile", action="store_true", help="the network, by torch.compile")
    parser.add_argument("--parts", action="store_true", help="also the milliseconds of each part of a step")


def run(args: Namespace) -> dict:
    rows = []
    for layout in args.layouts:
        names = [BATCHNORM, *(f"groups of {size}" if size else "whole batch" for size in args.groups)]
        parts = {name: parts_of_step(args, name, layout) for name in names}
        seconds = interleaved({name: in_turn(phases) for name, phases in parts.items()}, args)
        rates = {name: spread([args.batch / value for value in values]) for name, values in seconds.items()}
        rows.append({"layout": layout, "ratios": ratios(seconds), "images_per_second": rates})
        if args.parts:
            rows[-1]["milliseconds"] = {name: milliseconds(args, phases) for name, phases in parts.items()}
        show(args, rows[-1])
    part = "step" if args.network == "inception_v3" else f"step-{args.network}"
    about = {name: getattr(args, name) for name in ("network", "batch", "dtype", "compile")}
    return {"part": part, **about, "rows": rows}


def network(args: Namespace, variant: str) -> nn.Module:
    """The network, with the same weights for every variant."""
    torch.manual_seed(0)
    if args.network == "glyphs":
        model: nn.Module = GlyphInception(LABELS, 1, nn.BatchNorm2d, **configured("model/glyph_inception"))
    else:
        model = timm.create_model("inception_v3", aux_logits=True)
    if variant != BATCHNORM:
        number = variant.rpartition(" ")[2]
        convert_batchnorm(model, group_size=int(number) if number.isdigit() else None)
    return model.to(args.device)


def in_turn(phases: dict[str, Callable[[], object]]) -> Callable[[], object]:
    return lambda: [phase() for phase in phases.values()]


def parts_of_step(args: Namespace, variant: str, layout: str) -> dict[str, Callable[[], object]]:
    """The parts of a step, in order."""
    model = network(args, variant).to(memory_format=LAYOUTS[layout])
    glyphs = args.network == "glyphs"
    size = configured("data/glyphs")["size"] if glyphs else 299
    images = torch.randn(args.batch, 1 if glyphs else 3, size, size, device=args.device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    labels = torch.randint(LABELS, (args.batch,), device=args.device)
    optimizer = OPTIMIZATION.optimizer(model)
    parameters = list(model.parameters())
    step_statistics = None if variant == BATCHNORM else StepStatistics(model)
    average = InferenceModel(model, 0.9999)
    call = torch.compile(model) if args.compile else model
    loss = torch.zeros(())

    def forward() -> None:
        nonlocal loss
        if step_statistics is not None:
            set_limits(step_statistics.layers.values(), 3.0, 5.0)
        bf16 = args.dtype == "bfloat16"
        with torch.autocast(args.device.partition(":")[0], torch.bfloat16) if bf16 else nullcontext():
            output = call(images)
            logits, *auxiliary = output if isinstance(output, tuple) else (output,)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            for extra in auxiliary:
                loss = loss + 0.4 * F.cross_entropy(extra, labels)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, OPTIMIZATION.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()

    phases: dict[str, Callable[[], object]] = {
        "forward": forward, "backward": lambda: loss.backward(), "update": update,
    }  # fmt: skip
    if step_statistics is not None:
        phases["mu and sigma"] = step_statistics.update
    return phases | {"average": lambda: average.update_parameters(model)}


def milliseconds(args: Namespace, phases: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians of the parts of a step. The host waits for a GPU after each part, so their sum exceeds a step."""
    rounds = [{name: clock(phase, args) for name, phase in phases.items()} for _ in range(args.rounds + 1)]
    return {name: 1000 * statistics.median(seconds[name] for seconds in rounds[1:]) for name in phases}


def configured(name: str) -> dict[str, Any]:
    """The options that a config gives to its class."""
    section = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    return {option: value for option, value in section.items() if option != "_target_"}


def show(args: Namespace, row: dict) -> None:
    title = f"{args.network}, batch {args.batch}, {args.dtype}, {row['layout']}{', compiled' * args.compile}"
    body = [[name, cell(ratio), cell(row["images_per_second"][name])] for name, ratio in row["ratios"].items()]
    table(title, ["", f"ratio to {BATCHNORM}", "images/s"], body)
    if "milliseconds" in row:
        names = list(dict.fromkeys(part for parts in row["milliseconds"].values() for part in parts))
        body = [[name, *(f"{ms.get(part, 0):.2f}" for part in names)] for name, ms in row["milliseconds"].items()]
        table("milliseconds of its parts", ["", *names], body)
