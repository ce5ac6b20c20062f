"""Parameters: what a module declares -> arrays, created in place on the devices that hold them.

Modules are built abstractly (`nnx.eval_shape`): a parameter is declared with a shape, names of its dimensions and what it is at first.
Values come later, from a seed; the many parameters of few shapes take few programs.

Invariant: a parameter's first value depends on the seed and on the order of declarations, not on the mesh.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Initial(NamedTuple):
    """What a parameter is at first."""

    scale: float | None
    """Standard deviation of a normal; 0: zeros, None: ones."""
    draw: int
    """What the seed is folded with."""


class ParamFactory:
    """Declares parameters; with `num_stacked`, one leading dimension for the layers of a stack."""

    def __init__(self, num_stacked: int | None = None, draws: Iterator[int] | None = None):
        self.stack = () if num_stacked is None else (num_stacked,)
        self.draws = draws or itertools.count()

    def __call__(self, shape: tuple[int, ...], names: tuple[str | None, ...], scale: float | None = 0.02) -> nnx.Param:
        """Return a float32 parameter, by default normal with Qwen2's initializer_range."""
        names = (*(None for _ in self.stack), *names)
        initial = Initial(scale, next(self.draws) if scale else 0)
        return nnx.Param(jnp.zeros((*self.stack, *shape)), names=names, initial=initial)


def create(target: Any, initial: Any, seed: int) -> Any:
    """Return the arrays of a tree of `jax.ShapeDtypeStruct`s with shardings, by a like tree of `Initial`s.

    They are made one after another. `seed` is at least 0 and below 2**32.
    """

    def leaf(wanted: jax.ShapeDtypeStruct, initial: Initial) -> jax.Array:
        make = _maker(wanted.shape, wanted.dtype.name, wanted.sharding, initial.scale)
        return make(np.uint32(seed), np.uint32(initial.draw))

    return jax.tree.map(leaf, target, initial)


@functools.lru_cache(maxsize=64)
def _maker(shape: tuple[int, ...], dtype: str, sharding: jax.sharding.Sharding, scale: float | None):
    """Return the jitted function (seed, draw) -> array."""

    def make(seed, draw):
        if not scale:
            return jnp.full(shape, 1 if scale is None else 0, dtype)
        return (scale * jax.random.normal(jax.random.fold_in(jax.random.key(seed), draw), shape)).astype(dtype)

    return jax.jit(make, out_shardings=sharding)
