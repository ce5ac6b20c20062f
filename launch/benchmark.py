"""Measure this machine: JSON lines of figures, on random weights of a Qwen2.5 size or on a model.

python launch/benchmark.py decode --size 0.5B --batch 1 8 32
python launch/benchmark.py sweep --model DIR --dtype float32
python launch/benchmark.py train --model DIR --dtype float32 --divide 32
python launch/benchmark.py train --size 32B --slice 1 3          (a layer slice on one device, and the whole model's time from it)
python launch/benchmark.py convert --size 0.5B                   (both forms of a checkpoint, to $TMPDIR and back)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

# Where nothing is installed but jax, flax, optax and numpy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "sweep", "train", "convert"])
    parser.add_argument("--model", help="Hugging Face directory, hub id, ID@REVISION, or our own checkpoint")
    parser.add_argument("--size", default="0.5B", help="without --model: random weights of this Qwen2.5 size")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--int8", choices=["weights", "cache"], nargs="+", default=[], help="decode, sweep: what is stored in 8 bits"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="decode: rows decoded together")
    parser.add_argument("--tokens", type=int, default=112, help="decode: thinking tokens of each row")
    parser.add_argument("--limit", type=int, help="decode: tokens that rows might make, at least --tokens")
    parser.add_argument("--prompt", type=int, default=64, help="without --model: tokens of each prompt")
    parser.add_argument("--problems", type=int, default=4, help="sweep: problems decoded together")
    budgets = [64, 128, 192, 256, 384, 512, 768, 1024]
    parser.add_argument("--budgets", type=int, nargs="+", default=budgets, help="sweep: thinking tokens, exactly")
    waits = [1, 2, 3, 4]
    parser.add_argument("--waits", type=int, nargs="*", default=waits, help="sweep: ignores, at the largest budget")
    parser.add_argument("--answer", type=int, default=32, help="sweep: most answer tokens of each point")
    parser.add_argument("--examples", type=int, default=64, help="train: examples in all, 16 a step, of s1K's lengths")
    parser.add_argument("--divide", type=float, default=1, help="train: what those lengths are divided by")
    parser.add_argument(
        "--row-length", type=int, help="train: tokens of the longest rows; default: the longest example"
    )
    parser.add_argument("--remat", default="full", help="train: none, dots, attention or full")
    parser.add_argument(
        "--attention",
        choices=["xla", "pallas", "cudnn", "splash"],
        help="decode, sweep: xla or pallas; train: all; default: the platform's",
    )
    parser.add_argument("--no-pack", action="store_true", help="train: a row for each example")
    parser.add_argument("--loss-chunk", type=int, default=1024, help="train: positions whose logits exist at a time")
    parser.add_argument("--slice", type=int, nargs=2, metavar="LAYERS", help="train: two numbers of layers to measure")
    parser.add_argument("--sequence", type=int, default=1, help="train: devices that each row's length is split over")
    parser.add_argument("--tensor", type=int, default=1, help="devices that each layer is split over")
    return parser.parse_args()


def main() -> None:
    """Run one measurement."""
    args = parse()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured too
    if args.what == "train":
        from s1jax.perf.benchmark_train import figures
    elif args.what == "convert":
        from s1jax.perf.benchmark_convert import figures
    else:
        from s1jax.perf.benchmark_decode import figures
    for line in figures(args):
        print(json.dumps({"benchmark": args.what, "model": args.model or args.size} | line), flush=True)


if __name__ == "__main__":
    from s1jax.runtime.command import run_command

    run_command(main)
