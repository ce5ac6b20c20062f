"""Compile a training config for hardware that is not here: memory, arithmetic and the partitioner's warnings, as a JSON line.

python launch/preflight.py s1_32b --topology h100:2x8

Topologies: h100:HOSTSxGPUS, TPU ones as v5p:2x2x4 or v6e:4x8, and cpu:N for this machine. It needs the platform's compiler, but no device:
pip install libtpu, or jax-cuda12-plugin jax-cuda12-pjrt nvidia-cudnn-cu12 nvidia-cuda-nvcc-cu12. Exits with 1 if the step does not fit.
"""

import json
import os
import sys

from s1jax.config import parse_command, run_command


def main() -> None:
    """Compile, and print what a step needs."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from s1jax.preflight import check_train, published_config
    from s1jax.train_config import TrainConfig

    argv = [part for arg in sys.argv[1:] for part in (arg.split("=", 1) if arg.startswith("--topology=") else [arg])]
    if "--topology" in argv[:-1]:
        place = argv.index("--topology")
        topology, argv = argv[place + 1], argv[:place] + argv[place + 2 :]
    elif {"--help", "-h"} & set(argv):
        topology = ""
    else:
        raise ValueError("which hardware? Give --topology, as h100:2x8, v5p:2x2x4, v6e:4x8 or cpu:1")
    config = parse_command(__doc__ or "", TrainConfig, argv)
    figures = check_train(config, published_config(config.model, config.dtype), topology)
    print(json.dumps({"model": config.model} | figures))
    sys.exit(0 if figures["fits"] in (True, None) else 1)


if __name__ == "__main__":
    run_command(main)
