"""The kernels for GPUs of rows over themselves: the tiles they visit, and what they give for any heads; interpreted, and on a GPU."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.ops.packed_attention import Tiles, _ranges
from tests.support.attention import of_all_scores, over_itself, random_inputs, rows

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("of_queries", [True, False])
@pytest.mark.parametrize("tiles", [Tiles(4, 8, 1, 1), Tiles(8, 4, 1, 1), Tiles(8, 8, 1, 1)], ids=str)
def test_programs_visit_what_is_seen_and_mask_what_is_not_seen_whole(tiles, of_queries):
    T = 48
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # Segments and, some of them, padding in between, at the start or at the end.
        lengths = np.diff(np.sort(rng.integers(0, T + 1, 6)), prepend=0, append=T)
        is_padding = rng.random(len(lengths)) < 0.3
        begin = np.repeat(np.cumsum(lengths) - lengths, lengths)
        start = np.where(np.repeat(is_padding, lengths), np.iinfo(np.int32).max, begin).astype(np.int32)
        seen = (start[:, None] <= np.arange(T)) & (np.arange(T) <= np.arange(T)[:, None])
        in_tiles = seen.reshape(T // tiles.queries, tiles.queries, T // tiles.keys, tiles.keys)
        some, whole = in_tiles.any((1, 3)), in_tiles.all((1, 3))
        if not of_queries:
            some, whole = some.T, whole.T
        for first, begin_whole, end_whole, stop, needed, unmasked in zip(
            *[np.asarray(x[0]) for x in _ranges(jnp.asarray(start[None]), tiles, of_queries)], some, whole, strict=True
        ):
            places = np.flatnonzero(needed)
            if len(places):
                assert (first, stop) == (places[0], places[-1] + 1)
            else:
                assert first >= stop
            visited = [*range(first, begin_whole), *range(begin_whole, end_whole), *range(end_whole, stop)]
            assert visited == list(range(first, stop))  # each once
            np.testing.assert_array_equal(np.flatnonzero(unmasked), np.arange(begin_whole, end_whole))


def outputs_and_gradients(kernel, inputs, d_output, *row):
    output, pull_back = jax.vjp(lambda *qkv: kernel(*qkv, *row), *inputs)
    return output, *pull_back(d_output)


PADDED_ANYWHERE = [[0] * 7 + [1] * 60 + [0] * 50 + [2] * 30 + [3] * 53, [1] * 130 + [0] * 3 + [2] + [0] * 66]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("heads", "head_dim", "dtype"),
    [
        ((4, 4), 16, "float32"),  # each head its own keys
        ((5, 1), 64, "float32"),  # all the same
        ((6, 3), 24, "float32"),  # a width that is no power of two
        ((6, 2), 256, "float32"),  # one that takes small tiles
        ((6, 2), 128, "bfloat16"),
    ],
)
def test_any_heads_give_what_all_scores_give(heads, head_dim, dtype):
    segment_ids = jnp.array(PADDED_ANYWHERE)
    begins = jnp.where(jnp.diff(segment_ids, prepend=0) != 0, jnp.arange(200), 0)
    row = jnp.arange(200) - jax.lax.cummax(begins, axis=1), segment_ids
    assert_near_all_scores("pallas", heads, head_dim, dtype, row, 1e-5 if dtype == "float32" else 1e-2)


def assert_near_all_scores(backend, heads, head_dim, dtype, row, error):
    """Outputs and gradients, by the norm of their difference from those of float32 in full precision."""
    real = (row[1] > 0)[:, :, None, None]
    *inputs, d_output = (x.astype(dtype) for x in random_inputs(row[0], heads, head_dim))
    d_output *= real.astype(dtype)
    kernel = functools.partial(over_itself, backend=backend)
    output, *gradients = jax.jit(functools.partial(outputs_and_gradients, kernel))(inputs, d_output, *row)
    exact = [x.astype("float32") for x in (*inputs, d_output)]
    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(functools.partial(outputs_and_gradients, of_all_scores))(exact[:3], exact[3], *row)
    assert output.dtype == dtype and np.isfinite(np.asarray(output, np.float32)).all()
    for one, other in zip((output * real, *gradients), (wanted[0] * real, *wanted[1:]), strict=True):
        assert jnp.linalg.norm(one.astype("float32") - other) < error * jnp.linalg.norm(other)


@pytest.mark.device
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("backend", ["pallas", "xla"])
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 5e-3), ("float32", 1e-3)])  # TF32
@pytest.mark.parametrize(("heads", "head_dim"), [((14, 2), 64), ((40, 8), 128), ((6, 2), 24)])
def test_on_a_gpu_the_kernels_give_what_all_scores_give_in_float32(heads, head_dim, dtype, error, backend):
    row = rows([700, 1, 300, 800], [1300], length=1900)
    assert_near_all_scores(backend, heads, head_dim, dtype, row, error)
