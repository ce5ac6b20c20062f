"""Attention of rows over themselves by kernels that come with JAX: splash attention (TPU) and cuDNN (GPU).

Both compare places in the row instead of positions. The result is the same if the row is in order (`nan_unless_in_order`). Other rows give
NaN, so that the loss shows it, instead of values under another mask.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Return attention by JAX's splash kernel for TPUs."""
    # Imported here because the import is slow and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    T, N, H = q.shape[1:]
    block = min(512, -(-T // 128) * 128)
    q = (q.swapaxes(1, 2) * H**-0.5).astype(q.dtype)
    q, k, v = _pad(q, 2, block), _pad(k.swapaxes(2, 3), 2, block), _pad(v, 2, block)
    padded_ids = _pad(segment_ids, 1, block)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    causal = splash_attention_mask.CausalMask((q.shape[2], q.shape[2]))
    kernel = splash.make_splash_mha_single_device(
        mask=splash_attention_mask.MultiHeadMask([causal] * N),
        block_sizes=splash.BlockSizes(**sizes),
        interpret=interpret,
    )
    output = jax.vmap(kernel)(q, k, v, splash.SegmentIds(padded_ids, padded_ids))
    return nan_unless_in_order(output.swapaxes(1, 2)[:, :T], positions, segment_ids)


def cudnn_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Return attention by cuDNN, in bfloat16 or float16. Each row must be one segment, followed only by padding.

    The causal mask alone hides that padding from the segment. Passing lengths would save its computation but leave its outputs undefined.
    """
    output = jax.nn.dot_product_attention(
        q, k.transpose(0, 3, 1, 2), v.swapaxes(1, 2), is_causal=True, implementation="cudnn"
    )
    one_segment = ((segment_ids[:, 1:] == segment_ids[:, :-1]) | (segment_ids[:, 1:] == 0)).all(axis=1)
    return nan_unless_in_order(output, positions, segment_ids, one_segment)


def _pad(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, -x.shape[a] % multiple if a == axis else 0) for a in range(x.ndim)])


def nan_unless_in_order(
    output: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    also: Bool[Array, " B"] | bool = True,
) -> Float[Array, "B T N H"]:
    """Return `output`, with NaN in each row that is out of order and in each row where `also` is False.

    A row is in order if its segments lie in the order of their ids, each in one piece, with positions that grow along it.
    """
    continues = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (positions[:, 1:] > positions[:, :-1])
    starts = segment_ids[:, 1:] > jax.lax.cummax(segment_ids[:, :-1], axis=1)
    in_order = (continues | starts | (segment_ids[:, 1:] == 0)).all(axis=1)
    return jnp.where((in_order & also)[:, None, None, None], output, jnp.nan)
