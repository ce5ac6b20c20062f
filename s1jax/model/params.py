"""Parameters: the declarations of modules -> arrays, created in place on the devices that hold them.

Modules are built abstractly (`nnx.eval_shape`) and declare each parameter's shape, names of dimensions and initial distribution. Values
are created later, from a seed. One program is compiled per shape, and many parameters share a shape.

Invariant: a parameter's initial value depends on the seed and on the order of declarations, but not on the mesh.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Initial(NamedTuple):
    """The initial distribution of a parameter."""

    scale: float | None
    """Standard deviation of a normal distribution. 0 means zeros, None means ones."""
    draw: int
    """The number that is folded into the seed."""


class ParamFactory:
    """Declares parameters. With `num_stacked`, each gets a leading dimension for the layers of a stack."""

    def __init__(self, num_stacked: int | None = None, draws: Iterator[int] | None = None):
        self.stack = () if num_stacked is None else (num_stacked,)
        self.draws = draws or itertools.count()

    def __call__(self, shape: tuple[int, ...], names: tuple[str | None, ...], scale: float | None = 0.02) -> nnx.Param:
        """Return a float32 parameter; see `Initial` for `scale`, whose default is the initializer_range of Qwen2 and Qwen3."""
        names = (*(None for _ in self.stack), *names)
        initial = Initial(scale, next(self.draws) if scale else 0)
        return nnx.Param(jnp.zeros((*self.stack, *shape)), names=names, initial=initial)


def create(target: Any, initial: Any, seed: int) -> Any:
    """Return arrays for `jax.ShapeDtypeStruct`s with shardings and a tree of `Initial`s, one after another. `seed` is a uint32."""

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
