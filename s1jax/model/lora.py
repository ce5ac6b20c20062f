"""Low-rank fine-tuning: a frozen model and a small tree of adapters -> one tree to compute with, and finally a merged model.

A projection computes W x + (alpha / rank) B A x (arXiv 2106.09685; `qwen2.Projection`). W may be stored in 8 or 4 bits (QLoRA,
arXiv 2305.14314). Only the adapters of `ModelConfig.lora` are trained: a float32 tree in the stacked layout. Gradients, optimizer state
and checkpoints hold nothing else. With B = 0 the model equals the base model exactly. A step computes no merged weight.

qwix's `LoraProvider` is not used: it fails inside the scan over layers, and it silently skips kernels that are reshaped before their
product, which are all of attention's.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params, abstract_params, init_params, unstack
from s1jax.ops.quantization import dequantize
from s1jax.runtime.sharding import ShardingRules

NAMES = ("lora_a", "lora_b")


def combine(frozen: Params, adapters: Params) -> Params:
    """Return the parameters of a model with `config.lora`: the frozen tree with the adapters added. No array is copied."""
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(adapters))


def split(params: Params) -> tuple[Params, Params]:
    """Return the frozen part and the adapters of a tree: the inverse of `combine`."""
    leaves = flatten_dict(params)
    adapters = {path: leaves.pop(path) for path in list(leaves) if path[-1] in NAMES}
    return unflatten_dict(leaves), unflatten_dict(adapters)


def init_adapters(config: ModelConfig, rules: ShardingRules, mesh: jax.sharding.Mesh, seed: int) -> Params:
    """Return the initial adapters of `config.lora`, with random A and B = 0, created in place on the devices that hold them."""
    return init_params(config, rules, "stacked", mesh, seed, part=lambda tree: split(tree)[1])


def merge(
    config: ModelConfig,
    rules: ShardingRules,
    mesh: jax.sharding.Mesh,
    frozen: Params,
    adapters: Params,
    dtype: str,
) -> tuple[ModelConfig, Params]:
    """Return a plain model that equals the frozen weights with their adapters: its config and its per-layer parameters.

    W + (alpha / rank) B A is computed in float32 and rounded to `dtype`. Each parameter is a `Merged`, and the stacks of the given ones are
    deleted, so that memory never holds the whole merged model.

    Quantized weights are dequantized and then merged, because the adapters were trained and evaluated on these numbers and partly correct
    their error. With the original weights, that correction would itself be an error.
    """
    assert config.lora is not None
    plain = dataclasses.replace(config, lora=None, nf4=False, int8=tuple(x for x in config.int8 if x != "weights"))
    target = abstract_params(config, rules, "per_layer", mesh)
    leaves = flatten_dict(unstack(combine(frozen, adapters), config.num_layers, target, donate=True))
    merged = {}
    for path, wanted in flatten_dict(abstract_params(plain, rules, "per_layer", mesh, dtype)).items():
        parts = [leaves.get((*path[:-1], name)) if path[-1] != "bias" else None for name in ("scale", *NAMES)]
        compute = functools.partial(_merger(config.lora.scale, wanted), leaves[path], *parts)
        merged[path] = Merged(wanted.shape, wanted.dtype, compute)
    return plain, unflatten_dict(merged)


class Merged(NamedTuple):
    """A parameter that is computed when it is written."""

    shape: tuple[int, ...]
    dtype: Any
    compute: Callable[[], jax.Array]


@functools.lru_cache(maxsize=64)
def _merger(scale_of_adapter: float, target: jax.ShapeDtypeStruct):
    """Return the jitted function (values [*O, *I], scale, A [r, *I], B [*O, r]) -> kernel [*O, *I]. Missing arrays are None."""

    def run(values, scale, a, b):
        kernel = values.astype(jnp.float32) if scale is None else dequantize(values, scale)
        if a is not None:
            kernel += scale_of_adapter * jnp.tensordot(b, a, axes=1, precision=jax.lax.Precision.HIGHEST)
        return kernel.astype(target.dtype)

    return jax.jit(run, out_shardings=target.sharding)
