"""Attention: q, k, v, positions and segments -> output, behind one call with one mask contract.

A query sees a key exactly when both are of the same segment and the key's position is not after the query's. Segment 0 is padding. That
one rule serves packed training (several segments a row), padded prefill, and decoding from a cache whose unwritten slots are of segment 0.
A query of segment 0 gets finite values that mean nothing.

Rows of queries may share what came before them: a `Prefix` row serves several consecutive rows, which read it in place and see of it
only what lies before a position of their own. So samples share a prompt, and answers a thinking trace.

Keys and values may be quantized (`quantization.py`), with a scale for each of the S.

Rows over themselves (training) go through a kernel that never holds all scores (`flash_attention.py`, on GPUs `packed_attention.py`);
each device sees whole rows of its share of the heads, also where the mesh splits the length (arXiv 2309.14509), so that work is balanced
and every backend can serve. So do queries over caches on a GPU (`cached_attention.py`); elsewhere XLA holds their scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from s1jax.ops.blocked_attention import LARGEST_BLOCK, MASKED_SCORE, blocked_attention
from s1jax.ops.library_attention import cudnn_attention, splash_attention
from s1jax.ops.quantization import values_and_scale
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import platform
from s1jax.runtime.sharding import ShardingRules, constrain

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Backend = Literal["xla", "cudnn", "pallas", "splash"]
CacheBackend = Literal["xla", "pallas"]
"""Those that serve queries over caches too."""
PLATFORMS: dict[str, tuple[str, ...]] = {
    "xla": ("cpu", "gpu", "tpu"),
    "cudnn": ("gpu",),
    "pallas": ("gpu", "cpu"),
    "splash": ("tpu", "cpu"),
}
"""Where each backend runs; `pallas` and `splash` are interpreted on a CPU, slowly, for tests."""


class Prefix(NamedTuple):
    """Keys and values shared by rows of queries: row `a` serves the rows `a * B / A` to `(a + 1) * B / A` of the B."""

    k: Float[Array, "A K H S"]
    v: Float[Array, "A K S H"]
    positions: Int[Array, "A S"]
    segment_ids: Int[Array, "A S"]


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H S"],
    v: Float[Array, "B K S H"],
    q_positions: Int[Array, "B T"],
    kv_positions: Int[Array, "B S"],
    q_segment_ids: Int[Array, "B T"],
    kv_segment_ids: Int[Array, "B S"],
    prefixes: Sequence[Prefix] = (),
    prefix_end: Int[Array, " B"] | None = None,
    backend: Backend | None = None,
    packed: bool = True,
    rules: ShardingRules | None = None,
) -> Float[Array, "B T N H"]:
    """Return softmax(q k^T / sqrt(H)) v under the module's mask, each key/value head serving N / K query heads.

    Of the prefixes a row sees the keys of its segment at positions before `prefix_end`, which is needed if there are any. Scores and
    softmax are float32; the output has the dtype of `q`.

    Rows over themselves (the very same arrays as `q_positions` and `kv_positions`, and as segment ids) go through the `backend`, or the
    platform's `default_backend`. All else, as caches and prefixes, goes through `xla`, or `pallas` (a GPU's default, forward only; `xla`
    where a card has too little shared memory for it). Under a mesh each device runs a kernel on its share of batch and heads by `rules`.
    `packed=False` promises one segment a row, with its padding after it. Raises UserError where a backend cannot do what it is given.
    """
    # The same arrays, not equal ones: values are not known when this is traced.
    over_itself = q_positions is kv_positions and q_segment_ids is kv_segment_ids and not prefixes
    if prefixes and prefix_end is None:
        raise UserError("prefixes need a prefix_end")
    default = default_backend(platform(), over_itself)
    backend = backend or default
    _check(backend, default, over_itself, platform(), q.dtype, packed)
    if over_itself:
        return _over_themselves(q, k, v, q_positions, q_segment_ids, backend, rules)
    if backend == "xla":
        return _whole(q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids, prefixes, prefix_end)
    # Here, since importing pallas takes its time.
    from s1jax.ops.cached_attention import Slots, cached_attention

    caches = [Slots(k, v, kv_positions, kv_segment_ids, q_positions + 1)]
    if prefix_end is not None:
        end = jnp.broadcast_to(prefix_end[:, None], q_positions.shape)
        caches += [Slots(*prefix, end) for prefix in prefixes]
    return cached_attention(q, q_segment_ids, caches, rules, interpret=platform() == "cpu")


def default_backend(platform: str, over_itself: bool = True) -> Backend:
    """Return the fastest backend of a platform that honours packed rows and every dtype; or of those that serve caches."""
    backends: dict[str, Backend] = {"gpu": "pallas", "tpu": "splash" if over_itself else "xla"}
    return backends.get(platform, "xla")


def check_cache_backend(backend: str | None) -> None:
    """Raise UserError for a backend that does not serve caches."""
    if backend not in (None, *get_args(CacheBackend)):
        raise UserError(f"attention is {backend!r}: over caches, choose {' or '.join(get_args(CacheBackend))}")


def _check(backend: str, default: Backend, over_itself: bool, platform: str, dtype: jnp.dtype, packed: bool) -> None:
    if backend not in PLATFORMS:
        raise UserError(f'attention backend "{backend}" is none of {", ".join(get_args(Backend))}')
    if not over_itself and backend not in get_args(CacheBackend):
        raise UserError(f"attention backend {backend} serves rows over themselves only: over caches, take {default}")
    if platform not in PLATFORMS[backend]:
        raise UserError(
            f"attention backend {backend} runs on {' and '.join(PLATFORMS[backend])}, not on {platform}, "
            f"whose default is {default}"
        )
    if backend == "cudnn":
        if packed:
            raise UserError(
                "attention backend cudnn knows no segments: take pallas, or promise packed=False (one segment a row, then padding)"
            )
        if dtype not in (jnp.bfloat16, jnp.float16):
            raise UserError(f"attention backend cudnn computes in bfloat16 or float16, not {dtype}: take pallas")


def _over_themselves(q, k, v, positions, segment_ids, backend: Backend, rules: ShardingRules | None) -> jax.Array:
    interpret = platform() == "cpu"

    def kernel(q, k, v, positions, segment_ids):
        row = (positions, segment_ids)
        match backend:
            case "xla" if q.shape[1] > LARGEST_BLOCK:
                return blocked_attention(q, k, v, *row)
            case "xla":
                return _whole(q, k, v, positions, positions, segment_ids, segment_ids)
            case "cudnn":
                return cudnn_attention(q, k, v, *row)
            case "pallas":
                # Here, since importing pallas takes its time.
                from s1jax.ops.packed_attention import packed_attention

                return packed_attention(q, k, v, *row, interpret=interpret)
            case "splash":
                return splash_attention(q, k, v, *row, interpret=interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.size <= 1:
        return kernel(q, k, v, positions, segment_ids)
    num_heads, num_kv_heads = q.shape[2], k.shape[1]
    axes = (*rules.heads, *rules.length)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if num_heads % shards:
        if any(mesh.shape[axis] > 1 for axis in rules.length):
            sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in axes)
            raise UserError(
                f"{num_heads} attention heads cannot be shared out over {sizes} devices: where the length is split, "
                f"the product of these must divide the number of heads"
            )
        axes, shards = (), 1
    # As projected: each device with the tokens that it holds. A length that goes and heads that come are one all-to-all.
    q = constrain(q, rules, "batch", "length", "heads", None)
    k, v = (
        constrain(k, rules, "batch", "kv_heads", None, "length"),
        constrain(v, rules, "batch", "kv_heads", "length", None),
    )
    # As many copies as give each device one of its own; their number still divides that of the query heads.
    if (copies := math.lcm(num_kv_heads, shards) // num_kv_heads) > 1:
        k, v = (constrain(x, rules, "batch", "kv_heads", None, None) for x in (k, v))
        k, v = (jnp.repeat(x, copies, axis=1) for x in (k, v))
    (batch,) = rules.spec(("batch",), q.shape[:1], mesh.shape)
    of_q, of_kv, of_tokens = PartitionSpec(batch, None, axes), PartitionSpec(batch, axes), PartitionSpec(batch)
    # The kernels' gradients are their own, which the check of varying axes cannot follow.
    kernel = jax.shard_map(kernel, in_specs=(of_q, of_kv, of_kv, of_tokens, of_tokens), out_specs=of_q, check_vma=False)
    return constrain(kernel(q, k, v, positions, segment_ids), rules, "batch", "length", "heads", None)


def _whole(
    q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids, prefixes=(), prefix_end=None
) -> jax.Array:
    """Return `attention`, with all scores held at once."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, k.shape[1], -1, H)
    causal = kv_positions[:, None, :] <= q_positions[:, :, None]
    parts = [_Part(q, k, v, causal & (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]))]
    for prefix in prefixes:
        shared = B // prefix.k.shape[0]
        positions, segment_ids = (jnp.repeat(x, shared, axis=0) for x in (prefix.positions, prefix.segment_ids))
        before = positions[:, None, :] < prefix_end[:, None, None]
        mask = before & (q_segment_ids[:, :, None] == segment_ids[:, None, :])
        parts.append(_Part(q, prefix.k, prefix.v, mask))
    # One softmax over all parts, normalised at the end.
    largest = jax.lax.stop_gradient(jnp.stack([part.largest() for part in parts]).max(axis=0))
    sums, outputs = zip(*[part.weigh(largest) for part in parts], strict=True)
    return (sum(outputs) / sum(sums)[..., None]).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q.dtype)


class _Part:
    """Scores of the queries [B, T, K, G, H] for keys [A, K, H, S] and values [A, K, S, H]; what it returns is [B, K, G, T, ...]."""

    def __init__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: Bool[Array, "B T S"]):
        B, T, K, G, H = q.shape
        A, self.v, self.shape = k.shape[0], v, (B, K, G, T)
        self.folded = (A, K, B // A, G, T)
        # All queries of a key/value head form one matrix [B / A * G * T, H]: batched products of this plain form are the fast ones.
        self.dtype, (keys, scale) = q.dtype, values_and_scale(k)
        q = q.reshape(A, B // A, T, K, G, H).transpose(0, 3, 1, 4, 2, 5).reshape(A, K, -1, H)
        scores = jnp.einsum("AKQH,AKHS->AKQS", q, keys.astype(q.dtype), preferred_element_type=jnp.float32) * H**-0.5
        if scale is not None:
            scores *= scale
        mask = mask.reshape(A, 1, B // A, 1, T, -1)
        self.scores = jnp.where(mask, scores.reshape(*self.folded, -1), MASKED_SCORE)

    def largest(self) -> jax.Array:
        """Return each query's largest score [B, K, G, T]."""
        return self._unfold(self.scores.max(axis=-1))

    def weigh(self, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the weights exp(score - largest) [B, K, G, T], and of the weighted values [B, K, G, T, H]."""
        A, K, F, G, T = self.folded
        weights = jnp.exp(self.scores - largest.reshape(A, F, K, G, T).swapaxes(1, 2)[..., None])
        values, scale = values_and_scale(self.v)
        flat = weights.reshape(A, K, F * G * T, -1)
        if scale is not None:
            flat *= scale.swapaxes(2, 3)
        output = jnp.einsum(
            "AKQS,AKSH->AKQH", flat.astype(self.dtype), values.astype(self.dtype), preferred_element_type=jnp.float32
        )
        return self._unfold(weights.sum(axis=-1)), self._unfold(output.reshape(*self.folded, -1))

    def _unfold(self, x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2).reshape(*self.shape, *x.shape[5:])
