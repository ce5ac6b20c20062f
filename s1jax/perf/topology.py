"""Hardware that is not present: the name of a topology -> its devices, as targets for a compiler.

This needs the platform's compiler (`COMPILERS`) but no device.
"""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from s1jax.checkpoint.source import resolve_source
from s1jax.model.config import SIZES, ModelConfig, config_of_size
from s1jax.runtime.errors import UserError

# The properties of the card that the compiler asks for, from NVIDIA's data sheet of the H100 SXM5 and the limits of compute capability 9.0.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 85000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Bytes of a device's memory that a program may use. GPU: the fraction that JAX reserves (`runtime/command.py`). TPU: the compiler's limit.
MEMORY = {"h100": 0.95 * 80e9, "v5e": 15.75 * 2**30, "v5p": 95 * 2**30, "v6e": 31.25 * 2**30}

COMPILERS = {
    "libtpu": "pip install libtpu",
    "jax_cuda12_plugin": "pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cudnn-cu12 nvidia-cuda-nvcc-cu12",
}


def topology_devices(topology: str) -> Sequence[jax.Device]:
    """Return the devices of `h100:HOSTSxGPUS`, of a TPU topology such as `v5p:2x2x1`, or (for `cpu:N`) the first N of this machine.

    Raises UserError if the name is malformed, or if the platform's compiler is not installed.
    """
    kind, _, shape = topology.partition(":")
    if not re.fullmatch(r"cpu:N|h100:NxN|v\d\w*:NxN(xN)?|tpu7x:NxNxN".replace("N", r"[1-9]\d*"), topology):
        what = f"topology is {topology!r}" if topology else "which hardware? --topology is missing"
        raise UserError(
            f"{what}: give h100:HOSTSxGPUS (such as h100:2x8), a TPU topology (such as v5p:2x2x4 or v6e:4x8), or cpu:N"
        )
    package = {"cpu": "jax", "h100": "jax_cuda12_plugin"}.get(kind, "libtpu")
    if importlib.util.find_spec(package) is None:
        raise UserError(f"compiling for {kind} needs a compiler that is not installed: {COMPILERS[package]}")
    if kind == "cpu":
        if int(shape) > jax.device_count():
            raise UserError(f"topology {topology} needs more devices than the {jax.device_count()} of this machine")
        return jax.devices("cpu")[: int(shape)]
    if kind == "h100":
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        description = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", topology=f"{shape}x1", target_config=H100
        )
    else:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        description = topologies.get_topology_desc(topology, "tpu")
    return description.devices


def published_config(model: str, dtype: str) -> ModelConfig:
    """Return a model's config. For the hub id of a published Qwen2.5 or dense Qwen3 this reads nothing; any other source is read."""
    if (found := re.fullmatch(r"Qwen/(.*?)(-Instruct)?", model)) and found[1] in SIZES:
        return config_of_size(found[1], dtype)
    return resolve_source(model, weights=False).model_config(dtype)


def platform_of(topology: str) -> str:
    """Return the platform of a topology: "cpu", "cuda" or "tpu"."""
    return {"h100": "cuda", "cpu": "cpu"}.get(topology.partition(":")[0], "tpu")
