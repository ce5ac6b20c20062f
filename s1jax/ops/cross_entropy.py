"""The loss: final hidden states, the output layer's weight and targets -> weighted cross-entropy, with its gradients.

The vocabulary has 152 thousand entries. So each device computes logits for only `chunk` positions at a time, and only for positions whose
loss weight is not zero. The gradients of a chunk are computed while its logits are in memory (as in Liger, arXiv 2410.10989, section 3.2).

On a mesh, devices that split the weight's columns exchange them for a share of the vocabulary. Then they work together on the chunks of
all of them. So no device holds the whole weight or its whole gradient, except under rules that split columns over axes that do not split
positions.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from s1jax.runtime.sharding import ShardingRules


class _Axes(NamedTuple):
    """The mesh axes that split the positions and the weight's two dimensions."""

    rows: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    """The axes over which columns are exchanged; all of them are also in `rows`."""


def weighted_cross_entropy(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    loss_weights: Float[Array, "B T"],
    rules: ShardingRules,
    chunk: int,
) -> Float[Array, ""]:
    """Return the sum of loss_weight * -log softmax(weight hidden)[target] over all positions, in float32.

    Products are in the dtype of `hidden`. Under `jax.set_mesh` the work is split by `rules`. Differentiable in `hidden` and `weight`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes, specs = _Axes(), None
    if mesh.size > 1:
        batch, length, _ = rules.axes(("batch", "length", None), hidden.shape, mesh.shape)
        vocab, embed = rules.axes(("vocab", "embed"), weight.shape, mesh.shape)
        vocab = () if {*vocab} & {*batch, *length} else vocab
        axes = _Axes(batch + length, vocab, embed if set(embed) <= {*batch, *length} else ())
        specs = (PartitionSpec(batch, length, None), PartitionSpec(vocab, axes.embed), PartitionSpec(batch, length))
    return _loss(hidden, weight, targets, loss_weights, chunk, axes, specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _loss(hidden, weight, targets, loss_weights, chunk, axes, specs):
    return _on_mesh(hidden, weight, targets, loss_weights, chunk, axes, specs, with_gradients=False)[0]


def _loss_forward(hidden, weight, targets, loss_weights, chunk, axes, specs):
    loss, *gradients = _on_mesh(hidden, weight, targets, loss_weights, chunk, axes, specs, with_gradients=True)
    return loss, gradients


def _loss_backward(chunk, axes, specs, gradients, factor):
    d_hidden, d_weight = ((x * factor).astype(x.dtype) for x in gradients)
    return d_hidden, d_weight, None, None


_loss.defvjp(_loss_forward, _loss_backward)


def _on_mesh(hidden, weight, targets, loss_weights, chunk, axes, specs, with_gradients):
    """Run `_on_one_device` on each device of the mesh."""
    local: Any = functools.partial(_on_one_device, chunk=chunk, axes=axes, with_gradients=with_gradients)
    if specs is not None:
        hidden_spec, weight_spec, position_spec = specs
        in_specs = (hidden_spec, weight_spec, position_spec, position_spec)
        out_specs = (PartitionSpec(), hidden_spec, weight_spec) if with_gradients else (PartitionSpec(),)
        local = jax.shard_map(local, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return local(hidden, weight, targets, loss_weights)


def _on_one_device(hidden, weight, targets, loss_weights, *, chunk: int, axes: _Axes, with_gradients: bool):
    """Return the loss and, with `with_gradients`, its gradients with respect to this device's `hidden` and `weight`."""
    shape, dtype = hidden.shape, hidden.dtype
    hidden, targets, loss_weights = (jnp.asarray(x).reshape(-1, *x.shape[2:]) for x in (hidden, targets, loss_weights))
    num_positions = targets.shape[0]
    chunk = min(chunk, num_positions)

    # [V, D / n] -> [V / n, D] in the compute dtype. `ids` is this device's share of the vocabulary. Ids from `vocab_size` on are padding.
    vocab_size, num_shares = weight.shape[0], math.prod(jax.lax.axis_size(axis) for axis in axes.embed)
    share = jnp.pad(weight.astype(dtype), ((0, -vocab_size % num_shares), (0, 0)))
    ids = jnp.arange(share.shape[0] // num_shares)
    if axes.embed:
        share = jax.lax.all_to_all(share, axes.embed, split_axis=0, concat_axis=1, tiled=True)
        ids += jax.lax.axis_index(axes.embed) * len(ids)
    exists = ids < vocab_size
    if axes.vocab:
        ids += jax.lax.axis_index(axes.vocab) * vocab_size

    # `order` is padded with positions past the end. They are read as zeros and never written.
    order = jnp.argsort(loss_weights == 0, stable=True)
    order = jnp.pad(order, (0, -num_positions % chunk), constant_values=num_positions)
    num_chunks = -(-jnp.count_nonzero(loss_weights) // chunk)
    if axes.rows:  # the loop contains collectives, so all devices must run it equally often
        num_chunks = jax.lax.pmax(num_chunks, (*axes.rows, *axes.vocab))
    sharing = (*axes.vocab, *axes.embed)

    def over_vocabulary(reduce: Any, x: jax.Array) -> jax.Array:
        return reduce(x, sharing) if sharing else x

    def add_chunk(i: jax.Array, carry: Any) -> Any:
        places = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        mine = [x.at[places].get(mode="fill", fill_value=0) for x in (hidden, targets, loss_weights)]
        h, target, w = (jax.lax.all_gather(x, axes.embed, tiled=True) if axes.embed else x for x in mine)
        logits = jnp.einsum("PD,VD->PV", h, share, preferred_element_type=jnp.float32)
        logits = jnp.where(exists, logits, -jnp.inf)
        largest = over_vocabulary(jax.lax.pmax, logits.max(axis=-1, keepdims=True))
        exponentials = jnp.exp(logits - largest)
        total = over_vocabulary(jax.lax.psum, exponentials.sum(axis=-1, keepdims=True))
        is_target = (ids == target[:, None]) & exists
        target_logits = over_vocabulary(jax.lax.psum, jnp.sum(jnp.where(is_target, logits - largest, 0), axis=-1))
        loss = carry[0] + jnp.sum(w * (jnp.log(total[:, 0]) - target_logits))
        if not with_gradients:
            return (loss,)
        d_logits = ((exponentials / total - is_target) * w[:, None]).astype(dtype)
        d_h = jnp.einsum("PV,VD->PD", d_logits, share, preferred_element_type=jnp.float32)
        d_h = jax.lax.psum(d_h, axes.vocab) if axes.vocab else d_h
        d_h = jax.lax.psum_scatter(d_h, axes.embed, tiled=True) if axes.embed else d_h
        d_share = jnp.einsum("PV,PD->VD", d_logits, h, preferred_element_type=jnp.float32)
        return loss, carry[1].at[places].set(d_h.astype(dtype), mode="drop"), carry[2] + d_share

    carry: Any = (jnp.zeros((), jnp.float32),)
    if with_gradients:
        carry += (jnp.zeros_like(hidden), jnp.zeros(share.shape, jnp.float32))
    loss, *gradients = jax.lax.fori_loop(0, num_chunks, add_chunk, carry)
    # Devices that worked on the same chunks hold the same loss, so only the other axes are summed.
    others = tuple(axis for axis in axes.rows if axis not in axes.embed)
    loss = jax.lax.psum(loss, others) if others else loss
    if not with_gradients:
        return (loss,)
    d_hidden, d_weight = gradients
    d_weight = jax.lax.psum(d_weight, others) if others else d_weight
    if axes.embed:
        d_weight = jax.lax.all_to_all(d_weight, axes.embed, split_axis=1, concat_axis=0, tiled=True)
    return loss, d_hidden.reshape(shape), d_weight[:vocab_size].astype(weight.dtype)
