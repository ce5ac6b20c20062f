"""Measure this machine: JSON lines of figures for decode and sweep, on random weights of a Qwen2.5 size or on a model.

python launch/benchmark.py decode --size 0.5B --batch 1 8 32
python launch/benchmark.py sweep --model DIR --dtype float32
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

# Where nothing is installed but jax, flax, optax and numpy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "sweep"])
    parser.add_argument("--model", help="Hugging Face directory or hub id, or one of our own checkpoints")
    parser.add_argument("--size", default="0.5B", help="without --model: random weights of this Qwen2.5 size")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--int8", choices=["weights", "cache"], nargs="+", default=[], help="what is stored in 8 bits")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="decode: rows decoded together")
    parser.add_argument("--tokens", type=int, default=112, help="decode: thinking tokens of each row")
    parser.add_argument("--prompt", type=int, default=64, help="without --model: tokens of each prompt")
    parser.add_argument("--problems", type=int, default=4, help="sweep: problems decoded together")
    budgets = [64, 128, 192, 256, 384, 512, 768, 1024]
    parser.add_argument("--budgets", type=int, nargs="+", default=budgets, help="sweep: thinking tokens, exactly")
    parser.add_argument(
        "--waits", type=int, nargs="*", default=[1, 2, 3, 4], help="sweep: ignores, at the largest budget"
    )
    parser.add_argument("--answer", type=int, default=32, help="sweep: most answer tokens of each point")
    parser.add_argument("--tensor", type=int, default=1, help="devices that each layer is split over")
    return parser.parse_args()


def main() -> None:
    """Run one measurement."""
    args = parse()
    import jax

    from s1jax import measure
    from s1jax.budget import Limits
    from s1jax.sharding import MeshConfig

    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured too
    mesh = MeshConfig(data=-1, fsdp=1, tensor=args.tensor)
    num_prompts = max(args.batch) if args.what == "decode" else args.problems
    if args.model:
        from s1jax.chat import encode_prompt, encode_text
        from s1jax.scheduler import load_decoder

        decoder, tokenizer = load_decoder(args.model, args.dtype, mesh, int8=tuple(args.int8))
        questions = [f"What is {i + 12} times 17? Explain every step." for i in range(num_prompts)]
        prompts = [tuple(encode_prompt(tokenizer, question)) for question in questions]
        wait = tuple(encode_text(tokenizer, "Wait"))
    else:
        from s1jax.model_config import qwen2_5

        config = dataclasses.replace(qwen2_5(args.size, args.dtype), int8=tuple(args.int8))
        decoder, wait = measure.random_decoder(config, mesh), (7,)
        prompts = measure.random_prompts(decoder, num_prompts, args.prompt)
    if args.what == "decode":
        figures = measure.decode_figures(decoder, prompts, args.batch, args.tokens)
    else:
        points = [Limits(budget, budget) for budget in args.budgets]
        points += [Limits(max(args.budgets), num_ignore=ignores) for ignores in args.waits]
        figures = iter([measure.sweep_figures(decoder, prompts, points, wait, args.answer)])
    for line in figures:
        print(json.dumps({"benchmark": args.what, "model": args.model or args.size} | line), flush=True)


if __name__ == "__main__":
    from s1jax.config import run_command

    run_command(main)
