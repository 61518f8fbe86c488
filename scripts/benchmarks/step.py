"""A full training step of Inception-v3 and of the glyphs network, compared with the same network with nn.BatchNorm2d.

Images on the device, forward, losses with the auxiliary head, backward, clipping, RMSProp, mu and sigma,
the inference model: everything in a step except drawing data and writing rows.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import yaml
from torch import nn

from batch_renorm.models.glyph_inception import GlyphInception
from batch_renorm.norm import StepStatistics, convert_batchnorm, set_limits
from batch_renorm.training.averaging import InferenceModel
from batch_renorm.training.loss import Loss
from batch_renorm.training.optimizer import Optimization, RMSProp
from benchmarks.measure import BATCHNORM, ROOT, cell, interleaved, ratios, spread, table

LABELS = 24
LOSS = Loss(label_smoothing=0.1, aux_weight=0.4)
OPTIMIZATION = Optimization(
    lr=1e-4, lr_decay=1.0, lr_decay_steps=1, weight_decay=4e-5, clip_norm=2.0,
    make=partial(RMSProp, decay=0.9, momentum=0.9, eps=1.0),
)  # fmt: skip


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--network", choices=["inception_v3", "glyphs"], default="inception_v3")
    parser.add_argument("--batch", type=int, default=32, help="a multiple of the groups; the experiments have 32")
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 16, 4], help="0 is the whole batch")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--compile", action="store_true", help="the network, by torch.compile")


def run(args: Namespace) -> dict:
    names = {BATCHNORM: None} | {f"groups of {size}" if size else "whole batch": size for size in args.groups}
    seconds = interleaved({name: training_step(args, size) for name, size in names.items()}, args)
    rates = {name: spread([args.batch / value for value in values]) for name, values in seconds.items()}
    about = {name: getattr(args, name) for name in ("network", "batch", "dtype", "compile")}
    relative = ratios(seconds)
    title = f"{args.network}, batch {args.batch}, {args.dtype}{', compiled' * args.compile}"
    body = [[name, cell(ratio), cell(rates[name])] for name, ratio in relative.items()]
    table(title, ["", f"ratio to {BATCHNORM}", "images/s"], body)
    part = "step" if args.network == "inception_v3" else f"step-{args.network}"
    return {"part": part, **about, "ratios": relative, "images_per_second": rates}


def training_step(args: Namespace, group_size: int | None) -> Callable[[], None]:
    """A step of the network with Batch Renorm in groups (0: of the whole batch), or with nn.BatchNorm2d (None)."""
    torch.manual_seed(0)  # the same weights for every variant
    if args.network == "glyphs":
        model: nn.Module = GlyphInception(LABELS, 1, nn.BatchNorm2d, **configured("model/glyph_inception"))
        shape = args.batch, 1, *[configured("data/glyphs")["size"]] * 2
    else:
        model, shape = timm.create_model("inception_v3", aux_logits=True), (args.batch, 3, 299, 299)
    if group_size is not None:
        convert_batchnorm(model, group_size=group_size or None)
    model.to(args.device).to(memory_format=torch.channels_last)
    images = torch.randn(shape, device=args.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(LABELS, (args.batch,), device=args.device)
    optimizer, average = OPTIMIZATION.optimizer(model), InferenceModel(model, 0.9999)
    parameters = list(model.parameters())
    statistics = None if group_size is None else StepStatistics(model)
    call = torch.compile(model) if args.compile else model

    def step() -> None:
        if statistics is not None:
            set_limits(statistics.layers.values(), 3.0, 5.0)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            output = call(images)
        LOSS(output, labels).mean().backward()
        nn.utils.clip_grad_norm_(parameters, OPTIMIZATION.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        if statistics is not None:
            statistics.update()
        average.update_parameters(model)

    return step


def configured(name: str) -> dict[str, Any]:
    """The options that a config gives to its class."""
    section = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    return {option: value for option, value in section.items() if option != "_target_"}
