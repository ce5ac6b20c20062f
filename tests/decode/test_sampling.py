"""`sampling.py` against Hugging Face's logit filters and against the distribution itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.decode.sampling import NEVER, SamplingSettings, draw, filter_scores, row_keys

V = 50


def settings(B=1, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    return SamplingSettings(
        jnp.full(B, temperature, jnp.float32),
        jnp.full(B, top_k, jnp.int32),
        jnp.full(B, top_p, jnp.float32),
        jnp.full(B, min_p, jnp.float32),
    )


def first_draw(logits, allowed, *others):
    return draw(logits, allowed[:1], *others)[0]


def keys(B, seed=0, problem=0):
    return row_keys(jnp.full(B, seed), jnp.full(B, problem), jnp.arange(B))


@pytest.mark.parametrize(
    "filters",
    [dict(top_k=5), dict(top_p=0.7), dict(min_p=0.2), dict(top_k=9, top_p=0.6), dict(top_p=1e-6), dict(top_k=1)],
)
def test_filters_keep_what_transformers_keeps(filters):
    import torch
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=(20, V), scale=2).astype(np.float32)
    expected = torch.tensor(logits)
    for name, warper in (("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper)):
        if name in filters:
            expected = warper(filters[name])(None, expected)
    kept = np.array(filter_scores(jnp.array(logits), settings(20, **filters)) > NEVER)
    np.testing.assert_array_equal(kept, torch.isfinite(expected).numpy())


@pytest.mark.integration
def test_draws_follow_the_softmax_at_the_temperature():
    logits = jnp.array(np.random.default_rng(1).normal(size=V), jnp.float32)
    n = 20_000
    tokens = first_draw(jnp.tile(logits, (n, 1)), jnp.ones((1, V), bool), keys(n), settings(n, temperature=0.7))
    frequencies = np.bincount(np.array(tokens), minlength=V) / n
    expected = np.array(jax.nn.softmax(logits / 0.7))
    # Five standard deviations of a binomial share.
    assert np.all(np.abs(frequencies - expected) < 5 * np.sqrt(expected * (1 - expected) / n))


@pytest.mark.integration
def test_a_masked_id_is_never_drawn_however_likely():
    logits = jnp.zeros((500, V)).at[:, 7].set(100.0)
    allowed = jnp.ones((1, V), bool).at[:, 7].set(False)
    for temperature in (0.0, 1.0, 50.0):
        assert 7 not in np.array(first_draw(logits, allowed, keys(500), settings(500, temperature=temperature)))


@pytest.mark.integration
def test_temperature_zero_is_greedy_also_beside_rows_that_sample():
    logits = jnp.array(np.random.default_rng(2).normal(size=(64, V)), jnp.float32)
    mixed = settings(64)._replace(temperature=jnp.where(jnp.arange(64) % 2, 1.0, 0.0))
    tokens = first_draw(logits, jnp.ones((1, V), bool), keys(64), mixed)
    np.testing.assert_array_equal(tokens[::2], jnp.argmax(logits, -1)[::2])
    assert (tokens != jnp.argmax(logits, -1)).any()


@pytest.mark.integration
def test_a_draw_depends_on_the_rows_own_key_and_not_on_its_batch_mates():
    logits = jnp.array(np.random.default_rng(3).normal(size=(8, V)), jnp.float32)
    allowed = jnp.ones((1, V), bool)
    together = first_draw(logits, allowed, keys(8), settings(8))
    order = np.array([5, 2, 7])
    apart = first_draw(logits[order], allowed, keys(8)[order], settings(3, top_k=0))
    np.testing.assert_array_equal(apart, together[order])
    assert (first_draw(logits, allowed, keys(8, seed=1), settings(8)) != together).any()
    assert (first_draw(logits, allowed, keys(8, problem=1), settings(8)) != together).any()


@pytest.mark.integration
@pytest.mark.parametrize("changes", [dict(temperature=0.0), dict(), dict(top_k=5)])
def test_each_mask_draws_what_it_would_draw_alone_and_the_same_where_it_forbids_nothing_drawn(changes):
    logits = jnp.array(np.random.default_rng(2).normal(size=(64, V)).astype(np.float32))
    masks = jnp.array(np.random.default_rng(3).random((2, V)) < [[1.0], [0.6]])
    together = draw(logits, masks, keys(64), settings(64, **changes))
    apart = [draw(logits, mask[None], keys(64), settings(64, **changes))[0] for mask in masks]
    np.testing.assert_array_equal(together, apart)
    forbids_nothing_drawn = masks[1][together[0]]
    if not changes.get("top_k"):
        np.testing.assert_array_equal(together[0][forbids_nothing_drawn], together[1][forbids_nothing_drawn])
    assert masks[1][together[1]].all() and not masks[1][together[0]].all()
