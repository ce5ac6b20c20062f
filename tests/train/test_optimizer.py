"""The recipe's learning rates and AdamW, and stochastic rounding of bfloat16 state."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.train.optimizer import OptimizerConfig, learning_rate, make_optimizer, round_stochastically, update


def test_the_schedule_is_the_recipes():
    schedule = learning_rate(OptimizerConfig(), num_steps=315)
    cosine = [1e-5 * 0.5 * (1 + np.cos(np.pi * (step - 16) / 299)) for step in (157, 314)]
    np.testing.assert_allclose(
        [float(schedule(s)) for s in (0, 8, 16, 157, 314, 315)], [0, 0.5e-5, 1e-5, *cosine, 0], rtol=1e-4, atol=1e-12
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("learning_rate", 0.0, "positive"),
        ("learning_rate", float("nan"), "positive"),
        ("learning_rate", 1.5, "at most 1"),
        ("weight_decay", float("inf"), "finite"),
        ("warmup_fraction", 1.0, "below 1"),
        ("beta2", 1.0, "below 1"),
        ("weight_decay", -0.1, "at least 0"),
        ("clip_norm", 0.0, "positive"),
    ],
)
def test_values_that_make_no_sense_are_refused(field, value, message):
    assert field in {f.name for f in fields(OptimizerConfig)}
    with pytest.raises(ValueError, match=f"{field} is .*{value}.*: .*{message}"):
        OptimizerConfig(**{field: value})


def test_stochastic_rounding_gives_a_neighbour_and_is_right_on_average():
    x = jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)
    rounded = jax.vmap(lambda key: round_stochastically(x, key))(jax.random.split(jax.random.key(0), 4000))
    down = jax.lax.bitcast_convert_type(
        (jax.lax.bitcast_convert_type(x, jnp.uint32) >> 16).astype(jnp.uint16), jnp.bfloat16
    )
    up = jnp.nextafter(down, jnp.where(x > 0, jnp.inf, -jnp.inf).astype(jnp.bfloat16))
    assert ((rounded == down) | (rounded == up)).all()
    step = jnp.abs(up.astype(jnp.float32) - down.astype(jnp.float32))
    error = jnp.abs(rounded.astype(jnp.float32).mean(axis=0) - x) / step
    assert error.max() < 5 * 0.5 / np.sqrt(4000)
    for value in (0.0, 1.0, -2.5, np.inf, -np.inf):
        assert round_stochastically(jnp.float32(value), jax.random.key(1)) == value
    assert jnp.isnan(round_stochastically(jnp.float32(np.nan), jax.random.key(1)))


def train_toward_a_line(dtype, steps=400):
    """Return the error after minimising a quadratic.

    Plain bfloat16 would round each update away: an update is below half a unit in the last place.
    """
    target = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, warmup_fraction=0.01), steps)
    params = {"layer": {"kernel": (target + 0.2).astype(dtype)}}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, i):
        grads = jax.tree.map(lambda p: p.astype(jnp.float32) - target, params)
        return update(optimizer, grads, state, params, jax.random.fold_in(jax.random.key(0), i))

    for i in range(steps):
        params, state = step(params, state, i)
    assert all(x.dtype == dtype for x in jax.tree.leaves((params, state)) if x.ndim)
    return float(jnp.abs(params["layer"]["kernel"].astype(jnp.float32) - target).mean())


def test_bfloat16_state_learns_what_float32_does():
    exact, rounded = train_toward_a_line(jnp.float32), train_toward_a_line(jnp.bfloat16)
    assert exact < 0.03 and rounded < exact + 0.02
