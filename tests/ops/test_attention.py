"""Attention against a float64 loop over single queries, and its one mask rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.ops.keys_values import KeysValues
from tests.support.attention import B, H, K, N, S, T, over_caches, random_mask_inputs, random_qkv

pytestmark = pytest.mark.usefixtures("quick_compilation")


def reference(q, k, v, q_positions, kv_positions, q_segment_ids, kv_segment_ids) -> np.ndarray:
    """One query at a time, over the keys it may see, in float64; NaN where it may see none."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    output = np.full(q.shape, np.nan)
    for b, t, n in np.ndindex(*q.shape[:3]):
        seen = (kv_segment_ids[b] == q_segment_ids[b, t]) & (kv_positions[b] <= q_positions[b, t])
        if seen.any():
            head = n // (q.shape[2] // k.shape[1])
            scores = q[b, t, n] @ k[b, head][:, seen] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            output[b, t, n] = weights @ v[b, head, seen] / weights.sum()
    return output


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop_over_queries_for_any_positions_and_segments(seed):
    inputs = (*random_qkv(seed), *random_mask_inputs(seed))
    wanted = reference(*inputs)
    seen = ~np.isnan(wanted)
    assert seen.any()
    np.testing.assert_allclose(np.asarray(over_caches(*inputs))[seen], wanted[seen], atol=2e-6)


@pytest.mark.integration
def test_a_query_is_moved_by_exactly_the_values_the_mask_lets_it_see():
    q, k, v = random_qkv()
    masks = random_mask_inputs(3)
    q_positions, kv_positions, q_segments, kv_segments = masks
    jacobian = jax.jacobian(lambda v: over_caches(q, k, v, *masks).sum(axis=(2, 3)))(v)  # [B, T, B, K, S, H]
    moved = np.abs(np.asarray(jacobian)).sum(axis=(3, 5)) > 0
    may = (q_segments[:, :, None] == kv_segments[:, None]) & (kv_positions[:, None] <= q_positions[:, :, None])
    sees_some = may.any(axis=-1)
    for b in range(B):
        assert not moved[b][:, np.arange(B) != b].any()  # never another row of the batch
        np.testing.assert_array_equal(moved[b, :, b][sees_some[b]], may[b][sees_some[b]])


def test_every_head_reads_its_own_key_and_value_head():
    q, k, v = random_qkv()
    positions, segments = np.tile(np.arange(S, dtype=np.int32), (B, 1)), np.ones((B, S), np.int32)
    inputs = (positions[:, :T] + S, positions, segments[:, :T], segments)
    for head in range(K):
        changed = v.at[:, head].add(1.0)
        moved = np.abs(over_caches(q, k, changed, *inputs) - over_caches(q, k, v, *inputs)).max(axis=(0, 1, 3)) > 0.5
        np.testing.assert_array_equal(moved, np.arange(N) // (N // K) == head)


def test_the_order_of_keys_in_memory_changes_nothing():
    q, k, v = random_qkv()
    q_positions, kv_positions, q_segments, kv_segments = random_mask_inputs(1)
    shuffle = np.random.default_rng(0).permutation(S)
    one = over_caches(q, k, v, q_positions, kv_positions, q_segments, kv_segments)
    other = over_caches(
        q,
        k[..., shuffle],
        v[:, :, shuffle],
        q_positions,
        kv_positions[:, shuffle],
        q_segments,
        kv_segments[:, shuffle],
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.integration
def test_a_query_that_sees_nothing_gives_finite_values_and_gradients():
    q, k, v = random_qkv()
    positions = np.zeros((B, S), np.int32)
    masks = (positions[:, :T], positions, np.ones((B, T), np.int32), np.full((B, S), 2, np.int32))
    assert np.isfinite(over_caches(q, k, v, *masks)).all()
    gradients = jax.grad(lambda qkv: over_caches(*qkv, *masks).sum())((q, k, v))
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.integration
def test_bfloat16_inputs_have_float32_scores_and_a_bfloat16_output():
    # Scores near 90 that differ by less than bfloat16 resolves there (0.5): rounding them would move weights by tens of percent.
    q, k, v = random_qkv(scale=5.0, dtype="bfloat16", sizes=(2, 16, 32, 4, 2, 64))
    q = q.at[..., 0].set(20.0)
    k = k.at[:, :, 0].set(36.0)
    positions, segments = np.tile(np.arange(32, dtype=np.int32), (2, 1)), np.ones((2, 32), np.int32)
    inputs = (q, k, v, positions[:, 16:], positions, segments[:, 16:], segments)
    output = over_caches(*inputs)
    assert output.dtype == jnp.bfloat16
    error = np.abs(np.asarray(output, np.float64) - reference(*inputs)).max()
    assert error < 0.1  # bfloat16 resolves 0.06 at the values' largest (16)


@pytest.mark.integration
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_what_rows_share_in_place_counts_like_a_copy_of_their_own(shared):
    rows, before = 4, 5
    q, k, v = random_qkv(1, sizes=(rows, T, S, N, K, H))
    _, k_before, v_before = random_qkv(2, sizes=(rows // shared, T, before, N, K, H))
    rng = np.random.default_rng(0)
    segment_ids = rng.integers(0, 2, (rows // shared, before)).astype(np.int32)
    positions = np.tile(np.arange(before, dtype=np.int32), (rows // shared, 1))
    prefix_end = np.array([0, 2, 4, 5], np.int32)
    q_positions, kv_positions = (np.tile(np.arange(before, before + n, dtype=np.int32), (rows, 1)) for n in (T, S))
    ones = np.ones((rows, T), np.int32), np.ones((rows, S), np.int32)
    prefix = KeysValues(k_before, v_before, positions, segment_ids)
    together = over_caches(q, k, v, q_positions, kv_positions, *ones, [prefix], prefix_end)
    seen = np.repeat(segment_ids, shared, axis=0) * (np.arange(before) < prefix_end[:, None])
    copies = [
        np.concatenate([np.repeat(x, shared, axis=0), y], axis=axis)
        for x, y, axis in ((k_before, k, 3), (v_before, v, 2))
    ]
    wanted = over_caches(
        q, *copies, q_positions, np.concatenate([np.repeat(positions, shared, axis=0), kv_positions], axis=1),
        ones[0], np.concatenate([seen, ones[1]], axis=1),
    )  # fmt: skip
    np.testing.assert_allclose(together, wanted, atol=2e-6)
