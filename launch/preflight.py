"""Compile a config's training step or decode loop for other hardware, and print its memory and its least time as a JSON line.

python launch/preflight.py CONFIG --topology TOPOLOGY [--field value ...], for example `s1_32b --topology h100:2x8` or
`s1_32b_math500 --topology h100:1x8 --model Qwen/Qwen2.5-32B-Instruct`

TOPOLOGY is h100:HOSTSxGPUS, a TPU slice such as v5p:2x2x4 or v6e:4x8, or cpu:N for this machine. It is required, and not a field of the
config. The hardware need not be here, but its compiler must be installed:
pip install libtpu, or jax-cuda12-plugin jax-cuda12-pjrt nvidia-cudnn-cu12 nvidia-cuda-nvcc-cu12.
The exit code is 1 if the step does not fit.
"""

import argparse
import json
import os
import sys
from typing import Any

from s1jax.runtime.command import run_command


def main() -> None:
    """Compile, and print the memory and the time of a step."""
    import jax

    from s1jax.evaluate.conditions import EvaluateConfig, traces_of
    from s1jax.evaluate.sweep import SweepConfig, grid
    from s1jax.perf.decoding import check_decode
    from s1jax.perf.topology import published_config
    from s1jax.perf.training import check_train
    from s1jax.runtime.config import parse_command
    from s1jax.train.config import TrainConfig

    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # the cache cannot hold programs for other devices
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", nargs="?", const="", default="")
    hardware, argv = parser.parse_known_args()
    config: Any = parse_command(__doc__, (TrainConfig, EvaluateConfig, SweepConfig), argv)
    if isinstance(config, TrainConfig):
        model = config.model
        figures = check_train(config, published_config(model, config.dtype), hardware.topology)
    else:
        model, condition = config.decoding.model, config.condition
        if isinstance(config, SweepConfig):
            condition = max((trace.condition for trace in traces_of(grid(config))), key=lambda c: c.limits)
        model_config = published_config(model, condition.dtype)
        figures = check_decode(config.decoding, condition, model_config, hardware.topology)
    print(json.dumps({"model": model} | figures))
    sys.exit(0 if figures["fits"] in (True, None) else 1)


if __name__ == "__main__":
    run_command(main)
