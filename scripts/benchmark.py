"""How fast the parts are, on this machine: python scripts/benchmark.py norm --help

norm: the layer, compared with nn.BatchNorm2d. step: a training step, compared with the same network with
nn.BatchNorm2d. data: reading, decoding and cropping images, compared with torchvision's recipe.
Ratios compare times of the same round, so a busy machine changes the rounds but not the ratios.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from benchmarks import data, norm, step
from benchmarks.measure import ROOT, machine

PARTS = {"norm": norm, "step": step, "data": data}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="PART", dest="part")
    for name, part in PARTS.items():
        summary = (part.__doc__ or "").partition("\n")[0]
        show_defaults = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(name, help=summary, description=summary, formatter_class=show_defaults)
        command.add_argument("--threads", type=int, default=1, help="on a CPU; 1 is timed without what others do")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--rounds", type=int, default=15)
        command.add_argument("--json", type=Path, metavar="FILE", help="default: results/benchmarks/PART-DEVICE.json")
        part.options(command)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = machine(args)
    print(f"{about['device']}, {args.threads} threads, torch {torch.__version__}, load {about['load'][0]}")
    result = {"part": args.part, **about, **PARTS[args.part].run(args)}
    device = re.sub(r"[^a-z0-9]+", "-", str(about["device"]).lower()).strip("-")
    file = args.json or ROOT / "results/benchmarks" / f"{result['part']}-{device}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{file}")


if __name__ == "__main__":
    main()
