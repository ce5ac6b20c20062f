"""Attention: one mask contract, two functions, and the choice of a backend.

Mask contract: a query sees a key if both have the same segment and the key's position is not after the query's position.
Segment 0 is padding or a free slot: a query of segment 0 gets finite values without meaning. This one rule serves packed training
(several segments per row), padded prefill and decoding.

Rows may share a prefix, such as a prompt or a thinking trace. Row `a` of A prefix rows serves the rows `a * B / A` to
`(a + 1) * B / A` of the B query rows, which read it in place. A query sees the keys of its segment at positions before its row's
`prefix_end`.

Scores are q k^T / sqrt(H). Each key/value head serves N / K query heads. Scores and softmax are float32; the output has the dtype of `q`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from s1jax.ops.blocked_attention import MAX_BLOCK, blocked_attention
from s1jax.ops.cached_attention import cached_attention
from s1jax.ops.dense_attention import dense_attention
from s1jax.ops.keys_values import KeysValues
from s1jax.ops.library_attention import cudnn_attention, splash_attention
from s1jax.ops.packed_attention import packed_attention
from s1jax.runtime.errors import UserError
from s1jax.runtime.hardware import platform
from s1jax.runtime.sharding import ShardingRules, constrain

Backend = Literal["xla", "cudnn", "pallas", "splash"]
"""The backends of `self_attention`."""
CacheBackend = Literal["xla", "pallas"]
"""The backends of `attention_over_caches`."""
PLATFORMS: dict[str, tuple[str, ...]] = {
    "xla": ("cpu", "gpu", "tpu"),
    "cudnn": ("gpu",),
    "pallas": ("gpu", "cpu"),
    "splash": ("tpu", "cpu"),
}
"""Where each backend runs. On a CPU, `pallas` and `splash` are interpreted, which is slow and meant for tests."""


def default_backend(platform: str) -> Backend:
    """Return the fastest backend of `self_attention` on a platform that supports packed rows and every dtype."""
    backends: dict[str, Backend] = {"gpu": "pallas", "tpu": "splash"}
    return backends.get(platform, "xla")


def default_cache_backend(platform: str) -> CacheBackend:
    """Return the fastest backend of `attention_over_caches` on a platform."""
    return "pallas" if platform == "gpu" else "xla"


def check_cache_backend(backend: str | None) -> None:
    """Raise UserError if `attention_over_caches` does not have this backend."""
    if backend not in (None, *get_args(CacheBackend)):
        raise UserError(f"attention is {backend!r}: over caches, choose {' or '.join(get_args(CacheBackend))}")


def self_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    backend: Backend | None = None,
    packed: bool = True,
    rules: ShardingRules | None = None,
) -> Float[Array, "B T N H"]:
    """Return the attention of each row over itself, as in training. No backend holds all scores of a long row.

    `backend` is by default the platform's `default_backend`. `packed=False` promises one segment per row, followed only by padding.
    On a mesh, `rules` say how batch and heads are split over devices, and each device runs a kernel on whole rows of its heads. If the
    mesh splits the length, one all-to-all turns the split of tokens into a split of heads (arXiv 2309.14509): this balances the work
    and lets every backend run. Raises UserError if the backend does not support the platform, the dtype or packed rows.
    """
    default = default_backend(platform())
    backend = backend or default
    _check_platform(backend, default)
    if backend == "cudnn":
        if packed:
            raise UserError(
                "attention backend cudnn knows no segments: choose pallas, or give each example a row of its own (--data.no-pack)"
            )
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            raise UserError(f"attention backend cudnn computes in bfloat16 or float16, not {q.dtype}: take pallas")
    kernel = functools.partial(_on_one_device, backend, platform() == "cpu")
    mesh = jax.sharding.get_abstract_mesh()
    if rules is None or mesh.size <= 1:
        return kernel(q, k, v, positions, segment_ids)
    return _sharded(kernel, q, k, v, positions, segment_ids, mesh, rules)


def attention_over_caches(
    q: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    cache: KeysValues,
    prefixes: Sequence[KeysValues] = (),
    prefix_end: Int[Array, " B"] | None = None,
    backend: str | None = None,
    rules: ShardingRules | None = None,
) -> Float[Array, "B T N H"]:
    """Return the attention of each query over its row of `cache` and over the row's prefixes: prefill, decoding, forks of a trace.

    `cache` has B rows and already holds the keys and values of the queries' own tokens. `prefix_end` is required if there are prefixes.
    Keys and values may be quantized. `backend` is by default the platform's `default_cache_backend`; `pallas` has no backward pass.
    On a mesh, each device computes for the rows and heads that it holds by `rules`. Raises UserError if the backend does not support
    caches or the platform.
    """
    default = default_cache_backend(platform())
    backend = backend or default
    check_cache_backend(backend)
    _check_platform(backend, default)
    caches, ends = [cache, *prefixes], [positions + 1]
    if prefix_end is not None:
        ends += [jnp.broadcast_to(prefix_end[:, None], positions.shape)] * len(prefixes)
    if backend == "pallas":
        return cached_attention(q, segment_ids, caches, ends, rules, interpret=platform() == "cpu")
    masks = [_mask(segment_ids, end, keys) for end, keys in zip(ends, caches, strict=True)]
    return dense_attention(q, caches, masks)


def _check_platform(backend: str, default: str) -> None:
    if platform() not in PLATFORMS[backend]:
        raise UserError(
            f"attention backend {backend} runs on {' and '.join(PLATFORMS[backend])}, not on {platform()}, "
            f"whose default is {default}"
        )


def _mask(segment_ids, end, keys: KeysValues) -> jax.Array:
    """Return which keys each query sees, [B, T, S]: those of its segment at positions before its `end`."""
    per_row = len(end) // len(keys.positions)
    key_positions, key_segment_ids = (jnp.repeat(x, per_row, axis=0) for x in (keys.positions, keys.segment_ids))
    return (key_positions[:, None, :] < end[:, :, None]) & (segment_ids[:, :, None] == key_segment_ids[:, None, :])


def _on_one_device(backend: Backend, interpret: bool, q, k, v, positions, segment_ids) -> jax.Array:
    """Return the attention of whole rows over themselves, by a backend."""
    match backend:
        case "xla" if q.shape[1] > MAX_BLOCK:
            return blocked_attention(q, k, v, positions, segment_ids)
        case "xla":
            keys_values = KeysValues(k, v, positions, segment_ids)
            return dense_attention(q, [keys_values], [_mask(segment_ids, positions + 1, keys_values)])
        case "cudnn":
            return cudnn_attention(q, k, v, positions, segment_ids)
        case "pallas":
            return packed_attention(q, k, v, positions, segment_ids, interpret)
        case "splash":
            return splash_attention(q, k, v, positions, segment_ids, interpret)


def _sharded(
    kernel: Callable[..., jax.Array], q, k, v, positions, segment_ids, mesh, rules: ShardingRules
) -> jax.Array:
    """Run a kernel on every device of a mesh, each on whole rows of its share of batch and heads."""
    num_heads, num_kv_heads = q.shape[2], k.shape[1]
    axes = (*rules.heads, *rules.length)
    shards = math.prod(mesh.shape[axis] for axis in axes)
    if num_heads % shards:
        if any(mesh.shape[axis] > 1 for axis in rules.length):
            raise UserError(
                f"{num_heads} attention heads cannot be shared out over {' x '.join(axes)} = {shards} devices: where the length is "
                "split, this number must divide that of the heads"
            )
        axes, shards = (), 1
    # Each device starts with the tokens that it projected. Then XLA can turn the split of the length into one of heads by one all-to-all.
    q = constrain(q, rules, "batch", "length", "heads", None)
    k = constrain(k, rules, "batch", "kv_heads", None, "length")
    v = constrain(v, rules, "batch", "kv_heads", "length", None)
    # Copy key/value heads until each device can have one of its own. Their number then still divides the number of query heads.
    if (copies := math.lcm(num_kv_heads, shards) // num_kv_heads) > 1:
        k, v = (jnp.repeat(constrain(x, rules, "batch", "kv_heads", None, None), copies, axis=1) for x in (k, v))
    (batch,) = rules.spec(("batch",), q.shape[:1], mesh.shape)
    q_spec, kv_spec, token_spec = PartitionSpec(batch, None, axes), PartitionSpec(batch, axes), PartitionSpec(batch)
    # check_vma=False: the kernels define their own gradients, which the check of varying mesh axes cannot follow.
    run = jax.shard_map(
        kernel, in_specs=(q_spec, kv_spec, kv_spec, token_spec, token_spec), out_specs=q_spec, check_vma=False
    )
    return constrain(run(q, k, v, positions, segment_ids), rules, "batch", "length", "heads", None)
