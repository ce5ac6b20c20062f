"""The optimizer: gradients -> new parameters, by the paper's recipe (appendix D): AdamW, linear warm-up, cosine decay to 0, clipping.

Master weights and moments are float32 or bfloat16. Plain bfloat16 would round away an update of a millionth of a weight. So bfloat16 state
is updated in float32 and then rounded up or down at random, such that its mean is exact (stochastic rounding, arXiv 2010.06192).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Float32, Key, PyTree

from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types

Floats: TypeAlias = PyTree[Float[Array, " ..."]]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to 0. The defaults are the paper's values."""

    learning_rate: float = 1e-5
    """Peak learning rate."""
    warmup_fraction: float = 0.05
    """Fraction of the steps over which the learning rate rises, rounded up to a whole step."""
    beta1: float = 0.9
    """Decay rate of the first moment."""
    beta2: float = 0.95
    """Decay rate of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 1e-4
    """Not applied to biases and norm weights, as in the Hugging Face trainer."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient. A longer gradient is scaled down to it."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, is_valid, range_ in (
            ("learning_rate", 0 < self.learning_rate <= 1, "positive and at most 1"),
            ("warmup_fraction", 0 <= self.warmup_fraction < 1, "at least 0 and below 1"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("epsilon", 0 < self.epsilon < math.inf, "positive and finite"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            ("clip_norm", self.clip_norm > 0, "positive"),
        ):
            if not is_valid:
                raise UserError(f"{name} is {getattr(self, name)}: it must be {range_}")


def learning_rate(config: OptimizerConfig, num_steps: int) -> Callable[[Any], Any]:
    """Return the schedule: 0 at step 0, linear to the peak at ceil(warmup_fraction * num_steps), cosine to 0 at `num_steps`."""
    warmup_steps = math.ceil(config.warmup_fraction * num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup_steps, max(num_steps, warmup_steps + 1))


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Return clipping followed by AdamW (arXiv 1711.05101) on the schedule of `learning_rate`."""

    def is_matrix(path: tuple[Any, ...], _: Any) -> bool:
        return path[-1].key in ("kernel", "lora_a", "lora_b") or path[0].key == "embed_tokens"

    adamw = optax.adamw(
        learning_rate(config, num_steps), config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay,
        mask=functools.partial(jax.tree_util.tree_map_with_path, is_matrix),
    )  # fmt: skip
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def update(
    optimizer: optax.GradientTransformation,
    grads: Floats,
    opt_state: PyTree[Array],
    params: Floats,
    key: Key[Array, ""],
) -> tuple[Floats, PyTree[Array]]:
    """Return the new parameters and optimizer state, in the dtypes of the old ones. `key` drives the stochastic rounding to bfloat16."""
    dtypes = [x.dtype for x in jax.tree.leaves((params, opt_state))]
    grads, opt_state, params = jax.tree.map(_in_float32, (grads, opt_state, params))
    updates, opt_state = optimizer.update(grads, opt_state, params)
    leaves, tree = jax.tree.flatten((optax.apply_updates(params, updates), opt_state))
    rounded = [
        round_stochastically(x, jax.random.fold_in(key, i)) if dtype == jnp.bfloat16 else x
        for i, (x, dtype) in enumerate(zip(leaves, dtypes, strict=True))
    ]
    return jax.tree.unflatten(tree, rounded)


def round_stochastically(x: Float32[Array, "*shape"], key: Key[Array, ""]) -> BFloat16[Array, "*shape"]:
    """Return float32 `x` as bfloat16, rounded up or down at random such that the mean is `x`.

    A bfloat16 is the upper 16 bits of a float32. Adding 16 random bits carries into the upper half with the right probability.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)) >> 16
    up_or_down = jax.lax.bitcast_convert_type(rounded.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), up_or_down, x.astype(jnp.bfloat16))


def _in_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
