"""How fast the parts are, on this machine: python scripts/benchmark.py norm --help

norm: the layer, compared with nn.BatchNorm2d. step: a training step, compared with the same network with
nn.BatchNorm2d. aims: both, and the largest ratios they should have. data: reading, decoding and cropping
images, compared with torchvision's recipe. limits: what would limit a step on 8 H100, computed, not measured.
Ratios compare times of the same round, so a busy machine changes the rounds but not the ratios.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from benchmarks import aims, data, limits, norm, step
from benchmarks.measure import ROOT, machine

PARTS = {"norm": norm, "step": step, "aims": aims, "data": data, "limits": limits}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(required=True, metavar="PART", dest="part")
    for name, part in PARTS.items():
        about = (part.__doc__ or "").partition("\n")[0]
        show_defaults = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(name, help=about, description=about, formatter_class=show_defaults)
        command.add_argument("--threads", type=int, default=1, help="on a CPU; 1 is timed without what others do")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--rounds", type=int, default=15)
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="default: results/benchmarks/<what>-<device>.json"
        )
        part.options(command)
    return main


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    about = machine(args)
    print(f"{about['device']}, {args.threads} threads, torch {torch.__version__}, load {about['load'][0]}")
    result = {"part": args.part, **about, **PARTS[args.part].run(args)}
    slug = re.sub(r"[^a-z0-9]+", "-", str(result.get("subject", about["device"])).lower()).strip("-")
    file = args.json or ROOT / "results/benchmarks" / f"{result['part']}-{slug}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
