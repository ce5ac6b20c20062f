"""Parameter trees of either layout whose matrices are small integers with a `scale`: stored in 8 or 4 bits (`ops/quantization.py`)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from s1jax.model.config import ModelConfig
from s1jax.ops.quantization import quantize, quantize_nf4
from s1jax.runtime.precision import Int8

Storage = Literal["int8", "nf4"]


def quantize_matrices(params: dict[str, Any], kind: Storage) -> dict[str, Any]:
    """Return parameters with all matrices as `int8`, or those of layers as `nf4` (as in QLoRA). The floats are removed from `params`."""
    rest = {name: value for name, value in params.items() if name != "layers"}
    layers = _quantize_tree(params["layers"], kind, ("layers",))
    return (_quantize_tree(rest, kind, ()) if kind == "int8" else rest) | {"layers": layers}


def _quantize_tree(tree: dict[Any, Any], kind: Storage, path: tuple[str | int, ...]) -> dict[Any, Any]:
    quantized: dict[Any, Any] = {}
    for name in list(tree):
        below = (*path, name)
        if isinstance(tree[name], dict):
            quantized[name] = _quantize_tree(tree[name], kind, below)
        else:
            quantized |= quantize_leaf(below, tree.pop(name) if _is_stored(below, kind) else tree[name], kind)
    return quantized


def _is_stored(path: tuple[str | int, ...], kind: Storage) -> bool:
    """Return whether the parameter at this path is a matrix that is stored as `kind`."""
    matrix = "weight" if path[-2] == "embed_tokens" else "kernel"
    return path[-1] == matrix and (kind == "int8" or path[0] == "layers")


def quantize_leaf(path: tuple[str | int, ...], leaf: jax.Array, kind: Storage) -> dict[str, jax.Array]:
    """Return the arrays that replace a parameter, by name: values and a scale if `kind` stores it, otherwise `leaf` itself.

    This waits for the result, so that a caller can free each float parameter before the next, and their collectives do not overlap.
    """
    name = str(path[-1])
    if not _is_stored(path, kind):
        return {name: leaf}
    stacked = path[0] == "layers" and not isinstance(path[1], int)
    values, scale = jax.block_until_ready(_quantize_matrix(leaf, kind, 2 if path[-2] == "o_proj" else 1, stacked))
    return {name: values, "scale": scale}


@functools.partial(jax.jit, static_argnames=("kind", "num_in", "stacked"))
def _quantize_matrix(x: jax.Array, kind: Storage, num_in: int, stacked: bool) -> tuple[jax.Array, jax.Array]:
    if stacked:
        return jax.lax.map(lambda layer: _quantize_matrix(layer, kind, num_in, False), x)
    if kind == "nf4":
        return quantize_nf4(x)
    q = quantize(x, tuple(range(x.ndim - num_in, x.ndim)))
    return q.qvalue, q.scale.reshape(x.shape[:-num_in])


def storage_dtype(path: tuple[Any, ...], config: ModelConfig) -> Any:
    """Return the dtype of an adapter or of a quantized parameter, and None for all others."""
    first, name = path[0].key, path[-1].key
    if name in ("lora_a", "lora_b"):
        return jnp.float32
    if config.nf4 and first == "layers" and name in ("kernel", "scale"):
        return jnp.uint8 if name == "kernel" else jnp.bfloat16
    if "weights" in config.int8 and (name in ("kernel", "scale") or first == "embed_tokens"):
        return jnp.float32 if name == "scale" else jnp.int8
    return None


def store_in_int8(
    config: ModelConfig, params: dict[str, Any], int8: Sequence[Int8]
) -> tuple[ModelConfig, dict[str, Any]]:
    """Return the config and parameters with these parts stored in 8 bits. Matrices are removed from `params`."""
    config = with_int8(config, int8)
    return config, quantize_matrices(params, "int8") if "weights" in config.int8 else params


def with_int8(config: ModelConfig, int8: Sequence[Int8]) -> ModelConfig:
    """Return the config with these parts stored in 8 bits."""
    return dataclasses.replace(config, int8=tuple(sorted(set(int8))))
