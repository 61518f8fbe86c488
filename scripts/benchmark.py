"""How fast the parts are, on this machine: python scripts/benchmark.py norm --help

norm: time of one forward and backward of the layer, as a ratio to nn.BatchNorm2d. Everything is
measured in turn within each round, so that a busy machine changes the rounds and not the ratios.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from batch_renorm.norm import BatchRenorm2d

# Convolution outputs of Inception-v3 at 299 x 299: channels, width.
SHAPES = [(32, 147), (64, 35), (192, 17), (320, 8), (128, 5)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PlainBatchRenorm2d(BatchRenorm2d):
    """Algorithm 1 as it stands in the paper, left to autograd: what most implementations do."""

    def _train(self, x: Tensor, relu: bool) -> Tensor:
        shape = (1, -1, 1, 1)
        var, mu_b = torch.var_mean(x, (0, 2, 3), correction=0)
        sigma_b = (var + self.eps).sqrt()
        rmax, dmax = self.limits
        with torch.no_grad():
            r = torch.clamp(sigma_b / self.sigma, 1 / rmax, rmax)
            d = torch.clamp((mu_b - self.mu) / self.sigma, -dmax, dmax)
        x = (x - mu_b.view(shape)) / sigma_b.view(shape) * r.view(shape) + d.view(shape)
        with torch.no_grad():
            self.mu += self.momentum * (mu_b - self.mu)
            self.sigma += self.momentum * (sigma_b - self.sigma)
        assert self.weight is not None
        assert self.bias is not None
        return x * self.weight.view(shape) + self.bias.view(shape)


VARIANTS: dict[str, Callable[[int], nn.Module]] = {
    "nn.BatchNorm2d": nn.BatchNorm2d,
    "whole batch": BatchRenorm2d,
    "groups of 16": lambda channels: BatchRenorm2d(channels, group_size=16),
    "groups of 4": lambda channels: BatchRenorm2d(channels, group_size=4),
    "plain autograd": PlainBatchRenorm2d,
}


def norm(args: argparse.Namespace) -> dict:
    rows = []
    for dtype in args.dtypes:
        for layout in args.layouts:
            table = []
            for channels, width in SHAPES:
                batch = args.batch // 2 if width > 100 else args.batch
                shape = (batch, channels, width, width)
                seconds = time_norms(shape, DTYPES[dtype], LAYOUTS[layout], args)
                table.append(summary(shape, seconds))
            rows += [{"dtype": dtype, "layout": layout, **row} for row in table]
            print_table(f"{dtype}, {layout}", table)
    return {"rows": rows}


def time_norms(shape, dtype, layout, args) -> dict[str, list[float]]:
    """Seconds of every round, for each variant."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator).to(args.device, dtype, memory_format=layout) for _ in range(2))
    x.requires_grad_()
    layers = {name: make(shape[1]).to(args.device) for name, make in VARIANTS.items()}

    def run(layer: nn.Module) -> None:
        x.grad = None
        layer.zero_grad()
        y = layer(x)
        y.backward(g.to(y.dtype))  # the plain formula gives float32 for bfloat16

    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for layer in layers.values():
        clock(partial(run, layer), args, 1)
    once = clock(partial(run, layers["nn.BatchNorm2d"]), args, 1)
    repeats = max(1, int(args.milliseconds / 1000 / once))
    for _ in range(args.rounds):
        for name, layer in layers.items():
            seconds[name].append(clock(partial(run, layer), args, repeats))
    return seconds


def clock(run: Callable[[], None], args: argparse.Namespace, repeats: int) -> float:
    """Seconds of a run; of the process on a single CPU thread, where others' work is left out."""
    on_cpu = args.device == "cpu"
    now = time.process_time if on_cpu and args.threads == 1 else time.perf_counter
    if not on_cpu:
        torch.accelerator.synchronize()
    start = now()
    for _ in range(repeats):
        run()
    if not on_cpu:
        torch.accelerator.synchronize()
    return (now() - start) / repeats


def summary(shape, seconds: dict[str, list[float]]) -> dict:
    base = seconds["nn.BatchNorm2d"]
    ratios = {}
    for name, values in seconds.items():
        quotients = [value / other for value, other in zip(values, base, strict=True)]
        low, median, high = statistics.quantiles(quotients, n=4)
        ratios[name] = {"median": median, "spread": (high - low) / 2}
    return {"shape": shape, "batchnorm_ms": 1000 * statistics.median(base), "ratios": ratios}


def print_table(title: str, table: list[dict]) -> None:
    names = [name for name in VARIANTS if name != "nn.BatchNorm2d"]
    print(f"\n{title}: ratio to nn.BatchNorm2d (median, +- half the quartile distance)")
    print(f"{'shape':>20} {'batchnorm ms':>13}" + "".join(f"{name:>18}" for name in names))
    for row in table:
        shape = "x".join(map(str, row["shape"]))
        cells = [row["ratios"][name] for name in names]
        ratios = "".join(f"{c['median']:>11.2f} +-{c['spread']:.2f}" for c in cells)
        print(f"{shape:>20} {row['batchnorm_ms']:>13.2f}{ratios}")
    means = [statistics.geometric_mean(row["ratios"][name]["median"] for row in table) for name in names]
    print(f"{'geometric mean':>20} {'':>13}" + "".join(f"{mean:>11.2f}{'':7}" for mean in means))


def machine(args: argparse.Namespace) -> dict:
    device = platform.processor() or platform.machine()
    if args.device != "cpu":
        device = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": args.threads,
    }


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = main.add_subparsers(required=True, metavar="PART")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--threads", type=int, default=1)
    shared.add_argument("--device", default="cpu")
    shared.add_argument("--json", metavar="FILE", help="also write the numbers and the versions")
    command = commands.add_parser(
        "norm",
        parents=[shared],
        help="the layer against nn.BatchNorm2d",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("--batch", type=int, default=32, help="halved at 147 pixels")
    command.add_argument("--rounds", type=int, default=15)
    command.add_argument("--milliseconds", type=float, default=10, help="length of one timing")
    command.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    command.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    command.set_defaults(run=norm)
    return main


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    result = {**machine(args), **args.run(args)}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
