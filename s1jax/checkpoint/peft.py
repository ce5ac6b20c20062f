"""LoRA adapters -> a directory that PEFT reads: adapter_config.json and adapter_model.safetensors.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint. PEFT computes W x + (lora_alpha / r) B A x, as `model/lora.py` does.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from s1jax.checkpoint import safetensors
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import is_first_process


class Adapter(NamedTuple):
    """The content of the two files."""

    settings: dict[str, Any]
    matrices: dict[str, np.ndarray]
    """Float32 matrices by PEFT's names: A [r, in] and B [out, r] of each layer's projections."""


def to_peft(config: ModelConfig, adapters: Params, base: str, revision: str | None) -> Adapter:
    """Return the stacked adapters of `config.lora` in PEFT's form, on every process. All processes call this together.

    `base` is the directory or the hub id of the model that they belong to, `revision` the commit of a hub id.
    """
    assert config.lora is not None
    matrices = {}
    for (*module, part), stack in sorted(flatten_dict(adapters["layers"]).items()):
        whole = stack if stack.is_fully_addressable else multihost_utils.process_allgather(stack, tiled=True)
        for layer, matrix in enumerate(np.asarray(whole)):
            name, shape = ("lora_A", (len(matrix), -1)) if part == "lora_a" else ("lora_B", (-1, matrix.shape[-1]))
            matrices[f"base_model.model.model.layers.{layer}.{'.'.join(module)}.{name}.weight"] = matrix.reshape(shape)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "target_modules": list(config.lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    return Adapter(settings, matrices)


def write_adapter(directory: Path, adapter: Adapter) -> None:
    """Write the two files into a new directory. Process 0 writes."""
    if is_first_process():
        directory.mkdir()
        specs = {name: ("F32", matrix.shape) for name, matrix in adapter.matrices.items()}
        safetensors.write_tensors(directory / "adapter_model.safetensors", specs, adapter.matrices.values())
        write_file(directory / "adapter_config.json", json.dumps(adapter.settings, indent=2) + "\n")
