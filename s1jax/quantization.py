"""Storage in 8 and 4 bits: an array -> small integers and scales, and products with what they stand for.

8 bits: int8 with a float32 scale for each channel, by its largest magnitude. A product takes the values as they are and scales what comes
out. A compiler that fuses the conversion into the product reads one byte per number; XLA for CPU writes the converted numbers first, and
gains room, not speed.

4 bits: NF4 (QLoRA, arXiv 2305.14314), an index into 16 levels of a normal distribution with a bfloat16 scale for each tile of 64 numbers
of the last dimension: 4.25 bits a number. Two indices lie in one uint8, since XLA for CPU widens a stack of uint4 before it slices it.
A product takes the floats, of one matrix at a time.

Invariant: what is stored is never trained, and no derivative keeps the floats it stands for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from s1jax.sharding import platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, Float

    from s1jax.model_config import Int8, ModelConfig

Storage = Literal["int8", "nf4"]
NF4_TILE = 64


def quantize(x: jax.Array, axis: tuple[int, ...]) -> Any:
    """Return `x` as a `qwix.QArray`, with one scale for all of `axis`; its `scale` has size 1 there."""
    # Here, since machines that never quantize need not have it.
    import qwix

    channels = [i for i in range(x.ndim) if i not in axis]
    return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=channels)


def values_and_scale(x: Any) -> tuple[jax.Array, jax.Array | None]:
    """Return the values of an array and, if it is quantized, its scale."""
    return (x.qvalue, x.scale) if is_quantized(x) else (x, None)


def is_quantized(x: Any) -> bool:
    """Return whether an array is quantized."""
    return hasattr(x, "qvalue")


def nf4_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the values and of the scales of an array of this shape in NF4."""
    tile = math.gcd(NF4_TILE, shape[-1])
    if tile % 2:
        raise ValueError(f"an array of shape {shape} cannot be stored in NF4: its last dimension must be even")
    return (*shape[:-1], shape[-1] // 2), (*shape[:-1], shape[-1] // tile)


def quantize_nf4(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the values of `x` in NF4, two in each uint8, and their scales; see `nf4_shapes`."""
    import qwix

    num_tiles = nf4_shapes(x.shape)[1][-1]
    tiles = {x.ndim - 1: x.shape[-1] // num_tiles}
    q = qwix.quantize(x.astype(jnp.float32), "nf4", channelwise_axes=range(x.ndim - 1), tiled_axes=tiles)
    low, high = jnp.moveaxis(q.qvalue.astype(jnp.uint8).reshape(*x.shape[:-1], -1, 2), -1, 0)
    return low | high << 4, q.scale.astype(jnp.bfloat16)


def dequantize(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Return the float32 numbers that a stored matrix stands for, int8 or NF4."""
    scale = scale.astype(jnp.float32)
    if values.dtype == jnp.int8:
        return values.astype(jnp.float32) * scale.reshape(scale.shape + (1,) * (values.ndim - scale.ndim))
    import qwix

    levels = qwix.dequantize(qwix.QArray(jnp.arange(16, dtype=jnp.uint4), jnp.ones(1), qtype="nf4"))
    pairs = jnp.stack([values & 15, values >> 4], axis=-1)
    return (levels[pairs].reshape(*scale.shape, -1) * scale[..., None]).reshape(*values.shape[:-1], -1)


def matmul(
    x: Float[Array, "B T I"], weight: Float[Array, "*O I"], scale: Float[Array, "*O"] | None = None, dtype: Any = None
) -> Float[Array, "B T *O"]:
    """Return the product of `x` with the rows of `weight`, each of them scaled, in `dtype`."""
    if scale is not None:
        return (matmul(x, weight, None, jnp.float32) * scale).astype(dtype)
    B, T, I = x.shape
    outer, weight = weight.shape[:-1], weight.astype(x.dtype)
    # As many as any mesh splits evenly: else it would gather the weights.
    num_blocks = math.gcd(math.lcm(8, max(1, jax.sharding.get_abstract_mesh().size)), math.prod(outer))
    if T == 1 and platform() == "cpu" and num_blocks > 1:
        # Decoding, much faster with the weights on the left. In blocks, else XLA would turn the product around again.
        blocks = weight.reshape(num_blocks, -1, I)
        y = jnp.einsum("noI,BI->noB", blocks, x[:, 0], preferred_element_type=dtype).transpose(2, 0, 1)
    else:
        y = jnp.einsum("BTI,OI->BTO", x, weight.reshape(-1, I), preferred_element_type=dtype)
    return y.reshape(B, T, *outer)


def trained_matmul(x: Float[Array, "B T I"], weight: Float[Array, "*O I"], dtype: Any) -> Float[Array, "B T *O"]:
    """Return `matmul` with a weight that may be trained."""
    if platform() != "cpu" or x.shape[1] == 1 or x.dtype != dtype:
        return matmul(x, weight, None, dtype)
    y = _product(x, weight.reshape(-1, weight.shape[-1]).astype(dtype))
    return y.reshape(*x.shape[:2], *weight.shape[:-1])


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Return the product of [B, T, I] and [O, I], with derivatives that a CPU computes half as fast again.

    XLA would transpose the activations, element by element within the operations that make them, for the weight's derivative; here
    that derivative is transposed instead.
    """
    return jnp.einsum("BTI,OI->BTO", x, weight)


def _product_forward(x, weight):
    return _product.fun(x, weight), (x, weight)


def _product_backward(kept, dy):
    x, weight = kept
    x, dy = jax.lax.optimization_barrier((x, dy))
    return jnp.einsum("BTO,OI->BTI", dy, weight), jnp.einsum("BTI,BTO->IO", x, dy).T


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def stored_product(x: jax.Array, values: jax.Array, scale: jax.Array, num_in: int) -> jax.Array:
    """Return `matmul` with a matrix stored in 8 or 4 bits, whose last `num_in` dimensions are summed over.

    The backward pass, towards `x` only, reads what is stored again: else the floats of all layers would be kept for it.
    """
    if values.dtype == jnp.int8:
        return matmul(x, values.reshape(*scale.shape, -1), scale, x.dtype)
    weight = dequantize(values, scale).astype(x.dtype)
    return matmul(x, weight.reshape(*weight.shape[:-num_in], -1), None, x.dtype)


def _stored_forward(x, values, scale, num_in):
    return stored_product(x, values, scale, num_in), (values, scale)


def _stored_backward(num_in, kept, dy):
    values, scale = kept
    size = values.size * (1 if values.dtype == jnp.int8 else 2) // math.prod(dy.shape[2:])
    x = jax.ShapeDtypeStruct((*dy.shape[:2], size), dy.dtype)
    transpose = jax.linear_transpose(lambda x: stored_product.fun(x, values, scale, num_in), x)
    return (*transpose(dy), None, None)


stored_product.defvjp(_stored_forward, _stored_backward)


def quantize_matrices(params: dict[str, Any], kind: Storage) -> dict[str, Any]:
    """Return parameters with their matrices in `kind`; the floats are given up, one after another.

    In 8 bits these are all matrices, in 4 those of the layers only, as in QLoRA. Either layout; a stack is converted layer by layer.
    """
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
    """Return what a parameter's module holds in its place, by name: a matrix that `kind` stores as values and scale, any other as it is.

    This waits for the result, so that of many, one after another, each may be given up before the next, and its reductions over devices
    don't meet those of the next.
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
    """Return the dtype of a parameter that has one of its own: adapters, and what is quantized."""
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
    """Return the model with these parts stored in 8 bits; parameters of either layout, which are given up."""
    config = with_int8(config, int8)
    return config, quantize_matrices(params, "int8") if "weights" in config.int8 else params


def with_int8(config: ModelConfig, int8: Sequence[Int8]) -> ModelConfig:
    """Return the config with these parts stored in 8 bits. Raises ValueError for one that is none."""
    if unknown := set(int8) - {"weights", "cache"}:
        raise ValueError(f"int8 is {tuple(int8)}: {', '.join(sorted(unknown))} is neither weights nor cache")
    return dataclasses.replace(config, int8=tuple(sorted(set(int8))))
