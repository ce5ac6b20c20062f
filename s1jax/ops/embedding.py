"""Token ids -> rows of the embedding table, on a mesh without gathering the table.

The columns are shared out over the devices that also share out rows and length of a batch. So each device looks all tokens up in its
own columns, and an all-to-all trades columns for positions: as many bytes as the result has, where gathering the table would move all of
it. A table whose vocabulary is split over `tensor` is looked up in parts, which are summed.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from s1jax.runtime.sharding import ShardingRules

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], rules: ShardingRules, dtype: str
) -> Float[Array, "B T D"]:
    """Return the tokens' rows of `table`, cast to `dtype`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        rows, length = rules.axes(("batch", "length"), tokens.shape, mesh.shape)
        vocab, columns = rules.axes(("vocab", "embed"), table.shape, mesh.shape)
        # Positions that are split over an axis of the columns are traded; over others, they stay so.
        kept, traded = (
            [tuple(a for a in axes if (a in columns) == is_traded) for axes in (rows, length)]
            for is_traded in (False, True)
        )
        in_order = all(axes == stay + go for axes, stay, go in zip((rows, length), kept, traded, strict=True))
        one_each = all(len(axes) <= 1 for axes in traded)  # several would come out in another order
        if in_order and one_each and {*traded[0], *traded[1]} == set(columns) and not {*vocab} & {*rows, *length}:
            lookup = functools.partial(_on_one_device, rows=rows, columns=columns, vocab=vocab, dtype=dtype)
            specs = (PartitionSpec(vocab, columns), PartitionSpec(*kept))
            result = PartitionSpec(rows, length)
            return jax.shard_map(lookup, in_specs=specs, out_specs=result, check_vma=False)(table, tokens)
    return table.at[tokens].get(mode="clip").astype(dtype)


def _on_one_device(table, tokens, *, rows, columns, vocab, dtype) -> jax.Array:
    first_id = jax.lax.axis_index(vocab) * table.shape[0] if vocab else 0
    x = table.at[tokens - first_id].get(mode="clip").astype(dtype)
    if vocab:
        is_here = (tokens >= first_id) & (tokens < first_id + table.shape[0])
        x = jax.lax.psum(jnp.where(is_here[..., None], x, 0), vocab)
    # The last axis varies fastest among the columns, so it is put together first.
    for axis in reversed(columns):
        x = jax.lax.all_to_all(x, axis, split_axis=0 if axis in rows else 1, concat_axis=2, tiled=True)
    return x
