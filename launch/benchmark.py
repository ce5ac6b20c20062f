"""Measure this machine: JSON lines of figures, on random weights of a published size or on a model.

The command starts itself again with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (huge pages) unless that variable is set.

python launch/benchmark.py decode --size Qwen2.5-0.5B --batch 1 8 32
python launch/benchmark.py sweep --model DIR --dtype float32
python launch/benchmark.py train --model DIR --dtype float32 --divide 32
python launch/benchmark.py train --size Qwen3-32B --slice 1 3    (two slices of the layers on one device, and an estimate for all layers)
python launch/benchmark.py convert --size Qwen2.5-0.5B           (write and read both forms of a checkpoint in $TMPDIR)
"""

import argparse
import json
import os
import sys
from pathlib import Path

# So that the benchmark runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse() -> argparse.Namespace:
    """Read the command line."""
    from s1jax.runtime.config import Parser

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "sweep", "train", "convert"])
    add = parser.add_argument
    add("--model", help="Hugging Face directory, hub id, ID@REVISION, or our own checkpoint")
    add("--size", default="Qwen2.5-0.5B", help="without --model: random weights of this size of Qwen2.5 or Qwen3")
    add("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    add("--int8", choices=["weights", "cache"], nargs="+", default=[], help="decode, sweep: arrays stored in 8 bits")
    add("--batch", type=int, nargs="+", default=[1, 8, 32], help="decode: rows decoded together")
    add("--tokens", type=int, default=112, help="decode: thinking tokens of each row")
    add("--limit", type=int, help="decode: token limit of a row, at least --tokens")
    add("--record", type=int, default=0, help="decode: pairs of runs without and with token records, to compare speeds")
    add("--prompt", type=int, default=64, help="without --model: tokens of each prompt")
    add("--problems", type=int, default=4, help="sweep: problems decoded together")
    budgets = [64, 128, 192, 256, 384, 512, 768, 1024]
    add("--budgets", type=int, nargs="+", default=budgets, help="sweep: exact numbers of thinking tokens")
    waits = [1, 2, 3, 4]
    add("--waits", type=int, nargs="*", default=waits, help="sweep: numbers of ignored stops, at the largest budget")
    add("--answer", type=int, default=32, help="sweep: maximum answer tokens of each point")
    add("--examples", type=int, default=64, help="train: number of examples, with the lengths of s1K, 16 per step")
    add("--divide", type=float, default=1, help="train: divisor of those lengths")
    add("--row-length", type=int, help="train: tokens of the longest rows; default: those of the longest example")
    add("--remat", default="full", help="train: none, dots, attention or full")
    backends = ["xla", "pallas", "cudnn", "splash"]
    add("--attention", choices=backends, help="decode, sweep: xla or pallas; train: all; default: that of the platform")
    add("--no-pack", action="store_true", help="train: one example per row")
    add("--loss-chunk", type=int, default=1024, help="train: positions whose logits are in memory at the same time")
    add("--slice", type=int, nargs=2, metavar="LAYERS", help="train: two numbers of layers to measure")
    add("--sequence", type=int, default=1, help="train: devices that share the length of each row")
    add("--tensor", type=int, default=1, help="devices that share each layer")
    return parser.parse_args()


def main() -> None:
    """Run one measurement."""
    args = parse()
    if "GLIBC_TUNABLES" not in os.environ:  # a process cannot set it for itself: the C library reads it when it starts
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured, too
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
