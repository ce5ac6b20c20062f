"""Parameter trees of either layout whose matrices are small integers with a `scale`: stored in 8 or 4 bits (`ops/quantization.py`)."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from s1jax.model.config import ModelConfig
from s1jax.ops.quantization import quantize, quantize_nf4

LeafPath = tuple[str | int, ...]
"""The keys that lead to a parameter."""
Storage = Literal["int8", "nf4"]


def quantize_matrices(params: dict[str, Any], kind: Storage) -> dict[str, Any]:
    """Return parameters with all matrices as `int8`, or those of layers as `nf4` (as in QLoRA). `params` is emptied."""
    leaves = flatten_dict(params)
    params.clear()
    for path in list(leaves):
        leaves |= quantize_leaf(path, leaves.pop(path), kind)
    return unflatten_dict(leaves)


def quantize_leaf(path: LeafPath, leaf: jax.Array, kind: Storage) -> dict[LeafPath, jax.Array]:
    """Return the arrays that replace a parameter, by path: values and a scale if `kind` stores it, otherwise `leaf` itself.

    This waits for the result, so that a caller can free each float parameter before the next, and their collectives do not overlap.
    """
    matrix = "weight" if path[-2] == "embed_tokens" else "kernel"
    if path[-1] != matrix or (kind == "nf4" and path[0] != "layers"):
        return {path: leaf}
    stacked = path[0] == "layers" and not isinstance(path[1], int)
    values, scale = jax.block_until_ready(_quantize_matrix(leaf, kind, 2 if path[-2] == "o_proj" else 1, stacked))
    return {path: values, (*path[:-1], "scale"): scale}


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
