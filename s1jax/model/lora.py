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

from s1jax.model.config import LoraConfig, ModelConfig
from s1jax.model.qwen2 import Params, abstract_params, init_params, unstack
from s1jax.ops.quantization import dequantize
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules

NAMES = ("lora_a", "lora_b")


def combine(frozen: Params, adapters: Params) -> Params:
    """Return the parameters of a model with `config.lora`: the frozen tree with the adapters added. No array is copied."""
    tree = dict(frozen)
    for name, value in adapters.items():
        tree[name] = combine(tree.get(name, {}), value) if isinstance(value, dict) else value
    return tree


def split(params: Params) -> tuple[Params, Params]:
    """Return the frozen part and the adapters of a tree: the inverse of `combine`."""
    frozen: Params = {}
    adapters: Params = {}
    for name, value in params.items():
        if not isinstance(value, dict):
            (adapters if name in NAMES else frozen)[name] = value
            continue
        frozen[name], below = split(value)
        if below:
            adapters[name] = below
    return frozen, adapters


def init_adapters(config: ModelConfig, rules: ShardingRules, mesh: jax.sharding.Mesh, seed: int) -> Params:
    """Return the initial adapters of `config.lora`, with random A and B = 0, created in place on the devices that hold them."""
    _check(config)
    return init_params(config, rules, "stacked", mesh, seed, part=lambda tree: split(tree)[1])


def merge(
    config: ModelConfig,
    rules: ShardingRules,
    mesh: jax.sharding.Mesh,
    frozen: Params,
    adapters: Params,
    dtype: str | None = None,
    lazily: bool = False,
) -> tuple[ModelConfig, Params]:
    """Return a plain model that equals the frozen weights with their adapters: its config and its per-layer parameters.

    W + (alpha / rank) B A is computed in float32, layer by layer, and rounded to `dtype` (None: that of the final norm). With `lazily`,
    each parameter is a `Merged` and the frozen stacks are deleted, so that memory never holds the whole merged model.

    Quantized weights are dequantized and then merged, because the adapters were trained and evaluated on these numbers and partly correct
    their error. With the original weights, that correction would itself be an error.
    """
    lora = _check(config)
    num_layers, dtype = config.num_layers, dtype or frozen["norm"]["weight"].dtype.name
    base = dataclasses.replace(config, lora=None)
    plain = dataclasses.replace(base, nf4=False, int8=tuple(part for part in config.int8 if part != "weights"))
    layers = unstack(frozen, num_layers, abstract_params(base, rules, "per_layer", mesh), donate=lazily)["layers"]
    deltas = unstack(adapters, num_layers)["layers"]

    def finish(node: Params, delta: Params, target: Params) -> Params:
        result: Params = {}
        for name, wanted in target.items():
            if isinstance(wanted, dict):
                result[name] = finish(node[name], delta.get(name, {}), wanted)
                continue
            parts = (None, None, None) if name == "bias" else (node.get("scale"), *(delta.get(key) for key in NAMES))
            compute = functools.partial(_merger(lora.scale, wanted), node[name], *parts)
            result[name] = Merged(wanted.shape, wanted.dtype, compute) if lazily else compute()
        return result

    target = abstract_params(plain, rules, "per_layer", mesh, dtype)
    merged: Params = {name: finish(frozen[name], {}, node) for name, node in target.items() if name != "layers"}
    return plain, merged | {"layers": {i: finish(layers[i], deltas[i], target["layers"][i]) for i in range(num_layers)}}


class Merged(NamedTuple):
    """A parameter that is computed when it is called."""

    shape: tuple[int, ...]
    dtype: Any
    compute: Callable[[], jax.Array]

    def __call__(self) -> jax.Array:
        """Return the array."""
        return self.compute()


@functools.lru_cache(maxsize=64)
def _merger(scale_of_adapter: float, target: jax.ShapeDtypeStruct):
    """Return the jitted function (values [*O, *I], scale, A [r, *I], B [*O, r]) -> kernel [*O, *I]. Missing arrays are None."""

    def run(values, scale, a, b):
        kernel = values.astype(jnp.float32) if scale is None else dequantize(values, scale)
        if a is not None:
            kernel += scale_of_adapter * jnp.tensordot(b, a, axes=1, precision=jax.lax.Precision.HIGHEST)
        return kernel.astype(target.dtype)

    return jax.jit(run, out_shardings=target.sharding)


def _check(config: ModelConfig) -> LoraConfig:
    if config.lora is None:
        raise UserError("config.lora is None: give the model's config a LoraConfig")
    return config.lora
