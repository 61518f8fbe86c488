"""One forward and backward of the layer, including the update of mu and sigma, as a ratio to nn.BatchNorm2d."""

import statistics
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from batch_renorm.norm import BatchRenorm2d
from benchmarks.measure import BATCHNORM, cell, clock, interleaved, ratios, table

FIVE = [(32, 147), (64, 35), (192, 17), (320, 8), (128, 5)]  # channels and width at 299 pixels, one of each kind
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PlainBatchRenorm2d(BatchRenorm2d):
    """Algorithm 1 as in the paper, differentiated by autograd, like most implementations."""

    def _train(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        var, mu_b = torch.var_mean(x, (0, 2, 3), correction=0)
        sigma_b = (var + self.eps).sqrt()
        rmax, dmax = self.limits
        with torch.no_grad():
            r = torch.clamp(sigma_b / self.sigma, 1 / rmax, rmax)
            d = torch.clamp((mu_b - self.mu) / self.sigma, -dmax, dmax)
        x = (x - mu_b.view(shape)) / sigma_b.view(shape) * r.view(shape) + d.view(shape)
        assert self.momentum is not None
        with torch.no_grad():
            self.mu += self.momentum * (mu_b - self.mu)
            self.sigma += self.momentum * (sigma_b - self.sigma)
        assert self.weight is not None
        assert self.bias is not None
        return x * self.weight.view(shape) + self.bias.view(shape)


VARIANTS: dict[str, Callable[[int], nn.Module]] = {
    BATCHNORM: nn.BatchNorm2d,
    "whole batch": BatchRenorm2d,
    "groups of 16": partial(BatchRenorm2d, group_size=16),
    "groups of 4": partial(BatchRenorm2d, group_size=4),
    "plain autograd": PlainBatchRenorm2d,
}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=32, help="a multiple of 32; halved at 147 pixels and above")
    parser.add_argument("--milliseconds", type=float, default=10, help="least length of one timing")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--whole", action="store_true", help="every norm of Inception-v3, not one of each kind")
    parser.add_argument("--widest", type=int, default=299, help="leave wider images out")


def run(args: Namespace) -> dict:
    counts = inception_norms() if args.whole else Counter(FIVE)
    rows = []
    for dtype in args.dtypes:
        for layout in args.layouts:
            part = []
            for (channels, width), count in counts.items():
                if width > args.widest:
                    continue
                batch = args.batch // 2 if width > 100 else args.batch
                shape = (batch, channels, width, width)
                seconds = time_norms(shape, DTYPES[dtype], LAYOUTS[layout], args)
                milliseconds = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
                part.append({"shape": shape, "count": count, "milliseconds": milliseconds, "ratios": ratios(seconds)})
            show(f"{dtype}, {layout}", part)
            rows += [{"dtype": dtype, "layout": layout, **row} for row in part]
    return {"part": "norm" + "-whole" * args.whole, "rows": rows}


def inception_norms() -> Counter[tuple[int, int]]:
    """Channels and width of the inputs of Inception-v3's norms at 299 pixels, and the number of each."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("inception_v3", aux_logits=True)
        counts: Counter[tuple[int, int]] = Counter()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda _, inputs: counts.update([tuple(inputs[0].shape[1:3])]))
        model(torch.empty(2, 3, 299, 299))
    return counts


def time_norms(shape, dtype, layout, args: Namespace) -> dict[str, list[float]]:
    """Seconds of every round for each variant."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator).to(args.device, dtype, memory_format=layout) for _ in range(2))
    x.requires_grad_()

    def once(layer: nn.Module) -> None:
        x.grad = None
        layer.zero_grad()
        y = layer(x)
        y.backward(g.to(y.dtype))  # the plain formula gives float32 for bfloat16

    layers = {name: make(shape[1]).to(args.device) for name, make in VARIANTS.items()}
    runs = {name: partial(once, layer) for name, layer in layers.items()}
    runs[BATCHNORM]()
    repeats = max(1, int(args.milliseconds / 1000 / max(clock(runs[BATCHNORM], args), 1e-6)))
    return interleaved(runs, args, repeats)


def show(title: str, part: list[dict]) -> None:
    names = [name for name in VARIANTS if name != BATCHNORM]
    rows = [
        ["x".join(map(str, row["shape"])), str(row["count"])]
        + [f"{row['milliseconds'][BATCHNORM]:.2f}"]
        + [cell(row["ratios"][name]) for name in names]
        for row in part
    ]
    means = [statistics.geometric_mean(row["ratios"][name]["median"] for row in part) for name in names]
    rows.append(["geometric mean", "", "", *[f"{mean:.2f}" for mean in means]])
    sums = [sum(row["count"] * row["milliseconds"][name] for row in part) for name in (BATCHNORM, *names)]
    together = [f"{sums[0]:.1f}", *[f"{total / sums[0]:.2f}" for total in sums[1:]]]
    rows.append(["all together", "", *together])
    table(f"{title}: ratio to {BATCHNORM}", ["shape", "norms", "batchnorm ms", *names], rows)
