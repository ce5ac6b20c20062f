"""The tree of all scripts of sampled tokens: `budget.transition` against a reference, one step of all scripts at a time.

Both sides are pure functions of (settings, state, sampled token). So each distinct pair of states (the reference's and ours) is visited
once: what follows a pair does not depend on how it was reached. The comparison is still of every script, at every step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from s1jax.decode import budget
from tests.support.budget_reference import Settings


class Game(NamedTuple):
    """What is sampled, under which settings, and what the reference says."""

    vocabulary: Any
    table: Any
    """`RowSettings`, one row for each setting."""
    last_tokens: Sequence[int]
    """The last token of the prompt under each setting."""
    redraw: Mapping[int, int]
    """For each token of the alphabet, the token that is drawn from the same logits if it may not begin an end."""
    begin: Callable[[int], Hashable]
    """Setting -> the reference's first state."""
    step: Callable[[int, Any, int], tuple[Hashable, dict[str, int]]]
    """(Setting, the reference's state, sampled token) -> its next state, and what must be seen, by name."""
    seen: Callable[[Any, Any], dict[str, np.ndarray]]
    """(Our step, our next state), as arrays -> what is seen, under the same names."""
    relevant: Callable[[Any], Any] = lambda state: state
    """Our state without what cannot matter any more: states that are equal in this sense are visited once."""


def row_settings(final_ids: tuple[int, ...], rows: Sequence[Settings], width: int = 3) -> budget.RowSettings:
    """Return the settings of some rows as arrays; strings have room for `width` tokens."""

    def column(values: Sequence[int]) -> np.ndarray:
        return np.array(values, np.int32)

    def padded(strings: Sequence[tuple[int, ...]]) -> np.ndarray:
        return np.array([string + (0,) * (width - len(string)) for string in strings], np.int32)

    return budget.RowSettings(
        max_thinking_tokens=column([s.maximum for s in rows]),
        min_thinking_tokens=column([s.minimum for s in rows]),
        num_ignore=column([s.num_ignore for s in rows]),
        ignore_ids=padded([s.ignore for s in rows]),
        ignore_length=column([len(s.ignore) for s in rows]),
        final_ids=padded([final_ids for _ in rows]),
        final_length=column([len(final_ids) for _ in rows]),
        max_answer_tokens=column([s.max_answer for s in rows]),
    )


def mismatches(module: ModuleType, game: Game, length: int, chunk: int = 32768, compiled: bool = True) -> Iterator[str]:
    """Compare all scripts up to this length; yield a line per differing step. `module` is `budget`, or a copy of it."""
    alphabet, table = list(game.redraw), game.table
    advance = functools.partial(module.transition, game.vocabulary)
    advance = jax.jit(advance) if compiled else advance
    last = jnp.array(game.last_tokens, jnp.int32)
    state = module.init_state(game.vocabulary, jax.tree.map(jnp.asarray, table), last, module.Phase.THINK, 0)
    ours = jax.tree.map(np.asarray, state)

    rows: list[Any] = []  # the reference's states, by number
    numbers: dict[Hashable, int] = {}

    def number_of(row: Hashable) -> int:
        if row not in numbers:
            numbers[row] = len(rows)
            rows.append(row)
        return numbers[row]

    @functools.cache
    def expected(setting: int, row: int, sampled: int) -> tuple[int, tuple[int, ...]]:
        after, must = game.step(setting, rows[row], sampled)
        return number_of(after), tuple(must.values())

    which = np.arange(len(game.last_tokens))
    theirs = np.array([number_of(game.begin(setting)) for setting in which.tolist()])
    seen: set[bytes] = set()
    for depth in range(length):
        sampled = np.tile(alphabet, len(which))
        redraw = np.tile([game.redraw[token] for token in alphabet], len(which))
        which, theirs = np.repeat(which, len(alphabet)), np.repeat(theirs, len(alphabet))
        ours = jax.tree.map(lambda x: np.repeat(x, len(alphabet), axis=0), ours)
        steps = [expected(*key) for key in zip(which.tolist(), theirs.tolist(), sampled.tolist(), strict=True)]
        wanted = np.array([must for _, must in steps])

        outputs = []
        for start in range(0, len(which), chunk):
            index = np.minimum(np.arange(start, start + chunk), len(which) - 1)  # one shape: the last row is repeated
            settings = jax.tree.map(lambda x: x[which], table)  # noqa: B023
            rows_in = jax.tree.map(lambda x: jnp.asarray(x[index]), (settings, ours))  # noqa: B023
            out = advance(*rows_in, jnp.asarray(sampled[index], jnp.int32), jnp.asarray(redraw[index], jnp.int32))
            outputs.append(jax.tree.map(lambda x: np.asarray(x)[: len(which) - start], out))  # noqa: B023
        now, ours = jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

        found = game.seen(now, ours)
        got = np.stack(list(found.values()), axis=1).astype(np.int64)
        for i in np.flatnonzero((got != wanted).any(axis=1)):
            parts = [f"{n} {g} not {w}" for n, g, w in zip(found, got[i], wanted[i], strict=True) if g != w]
            yield f"step {depth}, sampled {sampled[i]}, setting {which[i]}, {rows[theirs[i]]}: {'; '.join(parts)}"

        theirs = np.array([after for after, _ in steps])
        leaves = [x.reshape(len(which), -1).astype(np.int32) for x in jax.tree.leaves(game.relevant(ours))]
        keys = np.concatenate([which[:, None].astype(np.int32), theirs[:, None].astype(np.int32), *leaves], axis=1)
        new = []
        for i, key in enumerate(keys):
            if (packed := key.tobytes()) not in seen:
                seen.add(packed)
                new.append(i)
        which, theirs = which[new], theirs[new]
        ours = jax.tree.map(lambda x: x[new], ours)  # noqa: B023


def copy_of(module: ModuleType, source: str) -> ModuleType:
    """Return the module that a changed source makes."""
    copied = ModuleType(f"copy_of_{module.__name__}")
    exec(compile(source, f"copy of {module.__file__}", "exec"), copied.__dict__)
    return copied
