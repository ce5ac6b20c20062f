"""Low-rank fine-tuning: a frozen model and a small tree of adapters -> one tree to compute with, and finally a merged model.

A projection computes W x + (alpha / rank) B A x (arXiv 2106.09685; `qwen2.Projection`). W may be stored in 8 or 4 bits (QLoRA,
arXiv 2305.14314; `storage.py`). `ModelConfig.lora` says which projections have adapters. Only adapters are trained: a float32 tree in
the stacked layout. Gradients, optimizer state and checkpoints hold nothing else.

    def loss_fn(adapters, frozen, batch):
        model = nnx.merge(graphdef(config, rules, "stacked"), combine(frozen, adapters))
        ...
    grads = jax.grad(loss_fn)(adapters, frozen, batch)

This does not use qwix's `LoraProvider`, which creates adapters while the model runs, from the arrays that it sees multiplied. It fails
inside the scan over layers, and it silently skips kernels that are reshaped before their product, which are all of attention's.

Invariants: with B = 0 the model equals the base model exactly. A step computes no merged weight and no gradient of one.
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

    W + (alpha / rank) B A is computed in float32, layer by layer, and rounded to `dtype` (None: the dtype of the parameters that are not
    quantized). With `lazily`, each parameter is a `Merged`, which is computed when it is called, and the frozen stacks are deleted. Then
    memory never holds the whole merged model.

    Quantized weights are dequantized and then merged, because the adapters were trained and evaluated on these numbers and partly correct
    their error. If adapters were added to the original weights instead, that correction would itself be an error, and nobody would have
    measured the exported model. (To do it anyway, pass the original weights, and their config with the same `lora`.)
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
            leaf = Merged(
                wanted.shape, wanted.dtype, functools.partial(_merger(lora.scale, wanted), node[name], *parts)
            )
            result[name] = leaf if lazily else leaf()
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
