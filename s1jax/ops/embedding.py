"""Token ids -> rows of the embedding table, on a mesh without gathering the table.

Its columns are split over the same devices as the rows and the length of a batch. Each device looks up all tokens of the group in its own
columns, and an all-to-all exchanges columns for positions. If the vocabulary is split too (over `tensor`), each device looks up the ids
that it holds, and the results are summed.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Real

from s1jax.runtime.sharding import ShardingRules


def embed(
    table: Real[Array, "V D"], tokens: Int[Array, "B T"], rules: ShardingRules, dtype: str
) -> Float[Array, "B T D"]:
    """Return the row of `table` for each token, cast to `dtype`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        rows, length = rules.axes(("batch", "length"), tokens.shape, mesh.shape)
        vocab, columns = rules.axes(("vocab", "embed"), table.shape, mesh.shape)
        # Positions that are split over a mesh axis of the columns are exchanged. Splits over other axes stay as they are.
        kept, exchanged = (
            [tuple(a for a in axes if (a in columns) == is_exchanged) for axes in (rows, length)]
            for is_exchanged in (False, True)
        )
        in_order = all(axes == stay + go for axes, stay, go in zip((rows, length), kept, exchanged, strict=True))
        one_each = all(len(axes) <= 1 for axes in exchanged)  # an exchange over several axes would change the order
        if in_order and one_each and {*exchanged[0], *exchanged[1]} == set(columns) and not {*vocab} & {*rows, *length}:
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
    # The last mesh axis varies fastest along the columns, so its pieces are joined first.
    for axis in reversed(columns):
        x = jax.lax.all_to_all(x, axis, split_axis=0 if axis in rows else 1, concat_axis=2, tiled=True)
    return x
