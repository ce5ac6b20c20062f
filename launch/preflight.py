"""Compile a config for hardware that is not here, its training step or its decode loop: memory and the least time, as a JSON line.

python launch/preflight.py CONFIG --topology TOPOLOGY [--field value ...], as `s1_32b --topology h100:2x8`, or
`s1_32b_math500 --topology h100:1x8 --decoding.model Qwen/Qwen2.5-32B-Instruct`

--topology, which is no field of the config and must be given: h100:HOSTSxGPUS, a TPU's as v5p:2x2x4 or v6e:4x8, or cpu:N for this machine.

It needs the platform's compiler, but no device:
pip install libtpu, or jax-cuda12-plugin jax-cuda12-pjrt nvidia-cudnn-cu12 nvidia-cuda-nvcc-cu12. Exits with 1 if the step does not fit.
"""

import json
import os
import sys
from typing import Any

from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_command
from s1jax.runtime.errors import UserError


def main() -> None:
    """Compile, and print what a step needs."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # which cannot hold programs for devices that are not here
    from s1jax.evaluate.conditions import EvaluateConfig
    from s1jax.evaluate.sweep import SweepConfig, grid
    from s1jax.perf.decoding import check_decode
    from s1jax.perf.topology import published_config
    from s1jax.perf.training import check_train
    from s1jax.train.config import TrainConfig

    argv = [part for arg in sys.argv[1:] for part in (arg.split("=", 1) if arg.startswith("--topology=") else [arg])]
    if argv.count("--topology") > 1:
        raise UserError("--topology is given more than once: give one")
    if "--topology" in argv[:-1]:
        place = argv.index("--topology")
        topology, argv = argv[place + 1], argv[:place] + argv[place + 2 :]
    elif {"--help", "-h"} & set(argv):
        topology = ""
    else:
        raise UserError("which hardware? Give --topology, as h100:2x8, v5p:2x2x4, v6e:4x8 or cpu:1")
    config: Any = parse_command(__doc__ or "", (TrainConfig, EvaluateConfig, SweepConfig), argv)
    if isinstance(config, TrainConfig):
        model = config.model
        figures = check_train(config, published_config(model, config.dtype), topology)
    else:
        model, condition = config.decoding.model, config.condition
        if isinstance(config, SweepConfig):
            condition = grid(config).condition
        figures = check_decode(config.decoding, condition, published_config(model, condition.dtype), topology)
    print(json.dumps({"model": model} | figures))
    sys.exit(0 if figures["fits"] in (True, None) else 1)


if __name__ == "__main__":
    run_command(main)
