"""The examples of a step -> rows of several examples -> batches of few shapes: of s1K's lengths, padding would be most.

In: tokenised examples (`data.py`). Out: the global batch of a step by its number, which every process makes whole: ids are small. A batch
is a number of passes of the same few rows; a step that needs more rows than one pass has accumulates the gradients of several. Its last
passes may have shorter rows: with 16 examples a step, what the last rows leave empty would be a tenth to a third of all.

Invariants:
- A step takes exactly `batch_size` examples (an epoch's last step what is left), and each weighs what it would weigh alone: packing changes
  nothing but rounding. So rows are packed within a step, never across steps, and the packer has no state to save.
- A run's shapes are few and fixed, one for each length of rows, so its program is compiled once.
- A batch is a pure function of (examples, config, step), the same in every process and after every restart; to resume is to index.
- Every epoch covers every example once, in a new order. The loss weights of a batch sum to 1.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s1jax.data.examples import DataConfig, Examples
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError

if TYPE_CHECKING:
    import grain
    from jaxtyping import Int

Passes = dict[str, np.ndarray]
"""int32 `tokens`, `targets` (the next token), `positions` (from 0 in each example) and `segment_ids` (from 1 in each row; 0 where there
is no example), and float32 `loss_weights` (of predicting `targets`), all [M, R, T]: M passes of R rows of T tokens; `num_passes`, the
number of them that a step takes, the first ones."""
Batch = tuple[Passes, ...]
"""A step's passes, one `Passes` for each `Shape` of the run."""


MOST_EXAMPLES = 50_000_000
"""Of a run, all epochs counted: each step is packed before the first is made."""


@dataclass(frozen=True)
class Shape:
    """The shape of the passes of one row length, of all steps of a run."""

    num_passes: int
    """M: the most that a step takes."""
    rows_per_pass: int
    """R, over the whole mesh."""
    row_length: int
    """T, in tokens."""


def rows_per_pass(config: DataConfig, row_length: int, num_shards: int) -> int:
    """Return R: a multiple of `num_shards`.

    Raises UserError for a configured one that is none, and for a pass of more positions than an array has room for.
    """
    least = 1 if config.pack else config.batch_size
    rows = config.rows_per_pass or math.ceil(least / num_shards) * num_shards
    if rows % num_shards:
        raise UserError(
            f"rows_per_pass {rows} is no multiple of {num_shards}, the shards of a batch on this mesh (its data x fsdp): "
            f"choose a multiple of {num_shards}, or give more of the devices to the mesh's sequence or tensor"
        )
    # Nor for the pairs of blocks of 256 that attention goes through.
    if rows * max(row_length, (row_length // 256) ** 2) >= 2**31:
        raise UserError(
            f"a pass of {counted(rows, 'row')} of {row_length} tokens: no array has room for it; lower rows_per_pass or row_length"
        )
    return rows


def lengths_of_rows(config: DataConfig, longest: int, length_shards: int = 1) -> list[int]:
    """Return the lengths that rows may have, longest first: `row_length`, or the longest example's, and for the last passes its halves.

    They are rounded up to multiples of `pad_multiple` and of the parts that the mesh splits them into. Raises UserError for a
    `row_length` that these parts do not divide.
    """
    if config.row_length and config.row_length % length_shards:
        raise UserError(
            f"row_length {config.row_length} is no multiple of {length_shards}, the shards of the length on this mesh (its sequence)"
        )
    multiple = math.lcm(config.pad_multiple, length_shards)
    lengths = [config.row_length or math.ceil(longest / multiple) * multiple]
    for _ in range(config.halvings if config.pack else 0):
        half = math.ceil(lengths[-1] / 2 / multiple) * multiple
        if half >= lengths[-1]:
            break
        lengths.append(half)
    return lengths


def pack(lengths: Sequence[int] | np.ndarray, rooms: Sequence[int]) -> list[list[int]] | None:
    """Share out items of these lengths to rows with these rooms; return the items of each row, or None if they do not fit this way.

    Best fit, longest first (Johnson 1974: of equal rooms it needs at most 11/9 of the fewest possible, and one more).
    """
    rows: list[list[int]] = [[] for _ in rooms]
    by_room = sorted((room, row) for row, room in enumerate(rooms))
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(by_room, (lengths[item], -1))
        if place == len(by_room):
            return None
        room, row = by_room.pop(place)
        rows[row].append(item)
        bisect.insort(by_room, (room - lengths[item], row))
    return rows


def pack_step(
    lengths: Sequence[int] | np.ndarray, row_lengths: Sequence[int], rows_per_pass: int
) -> list[list[list[int]]]:
    """Share out a step's items to passes of as few positions as best fit finds; return, for each row length, the items of its rows.

    Of the first row length, the longest, a step has any number of passes, of each other at most one. That a row length which is not used
    is left out of `row_lengths` changes nothing: fewer choices, of which the best is still there. Raises UserError for an item that is
    longer than all rows.
    """
    if max(lengths) > row_lengths[0]:
        raise UserError(f"an example of {max(lengths)} tokens does not fit a row of {row_lengths[0]}")
    # No two of these share a row, and no shorter row holds one.
    large = sum(n > max(row_lengths[0] / 2, *row_lengths[1:], 0) for n in lengths)
    for positions, numbers in _numbers_of_passes(len(lengths), tuple(row_lengths), rows_per_pass):
        if positions < sum(lengths) or numbers[0] * rows_per_pass < large:
            continue
        rooms = [[length] * n * rows_per_pass for length, n in zip(row_lengths, numbers, strict=True)]
        if rows := pack(lengths, [*itertools.chain(*rooms)]):
            left = iter(rows)
            return [list(itertools.islice(left, len(x))) for x in rooms]
    raise AssertionError("longest rows of one item each hold them all")


@functools.lru_cache(maxsize=16)
def _numbers_of_passes(
    num_items: int, row_lengths: tuple[int, ...], rows_per_pass: int
) -> list[tuple[int, tuple[int, ...]]]:
    """Return numbers of passes of each row length that may hold this many items, with their positions, the fewest first."""
    most = math.ceil(num_items / rows_per_pass)
    numbers = itertools.product(range(most + 1), *[(0, 1)] * (len(row_lengths) - 1))
    return sorted((sum(map(operator.mul, n, row_lengths)) * rows_per_pass, n) for n in numbers)


def num_steps(num_examples: int, config: DataConfig) -> int:
    """Return the number of steps of the whole run; an epoch's last one may take fewer examples.

    Raises UserError for more than `MOST_EXAMPLES`.
    """
    if num_examples * config.num_epochs > MOST_EXAMPLES:
        raise UserError(
            f"num_epochs is {config.num_epochs}: with {num_examples:,} examples a run can have at most "
            f"{MOST_EXAMPLES // num_examples or 'no'} epochs"
        )
    return math.ceil(num_examples / config.batch_size) * config.num_epochs


def step_examples(num_examples: int, config: DataConfig) -> grain.MapDataset[Int[np.ndarray, " n"]]:
    """Return the indices of the examples of every step, `num_steps` of them."""
    import grain

    # Grain shuffles epoch e with seed + e, so seed 42's second epoch would be seed 43's first: spread the seeds out.
    seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    order = grain.MapDataset.range(num_examples).shuffle(seed)
    # `batch` before `repeat`: no batch spans two epochs, and the epoch still reaches `shuffle`.
    return order.batch(config.batch_size, batch_fn=np.array).repeat(config.num_epochs)


class Packer:
    """Makes the batches of a run."""

    def __init__(
        self,
        examples: Examples,
        config: DataConfig,
        num_shards: int = 1,
        length_shards: int = 1,
        steps: Sequence[np.ndarray] | None = None,
    ):
        """Find the shapes that serve every step; a pass has a multiple of `num_shards` rows, each split into `length_shards` parts.

        `steps` are the examples of each, by default those of `step_examples`.
        Raises UserError for an example that is longer than `row_length`, `rows_per_pass` or `row_length` that is no multiple of its
        shards, and a step of more positions than an array has room for.
        """
        self.examples, self.config = examples, config
        self.steps = step_examples(len(examples), config) if steps is None else steps
        longest = int(examples.lengths.max())
        self.row_lengths = lengths_of_rows(config, longest, length_shards)
        length = self.row_lengths[0]
        if longest > length:
            name = examples.row_ids[int(examples.lengths.argmax())]
            raise UserError(
                f"row_length is {length}, but example {name} has {longest} tokens: raise it to {longest}, or set max_length "
                f"to {length} and too_long to truncate"
            )
        self.rows_per_pass = rows_per_pass(config, length, num_shards)
        num_rows = np.array([[len(rows) for rows in self.rows_of(indices)] for indices in self.steps])
        num_passes = -(-num_rows // self.rows_per_pass)
        self._num_positions = int((num_passes @ self.row_lengths).sum()) * self.rows_per_pass
        most = dict(zip(self.row_lengths, map(int, num_passes.max(axis=0)), strict=True))
        if (positions := max(most[length] * self.rows_per_pass * length for length in most)) >= 2**31:
            raise UserError(
                f"a step of {positions:,} positions: no array has room for it; lower row_length or batch_size"
            )
        self.row_lengths = [length for length in self.row_lengths if most[length]]  # no program for what no step needs
        self.shapes = tuple(Shape(most[length], self.rows_per_pass, length) for length in self.row_lengths)
        # The first token of an example is nobody's target.
        self.num_targets = np.array([examples[i][1][1:].sum() for i in range(len(examples))])

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        if step >= len(self):  # Grain would begin again
            raise IndexError(step)
        return self.make_batch(self.steps[step])

    def rows_of(self, indices: Sequence[int] | np.ndarray) -> list[list[list[int]]]:
        """Return the examples of a step's rows, for each row length; some of a pass may have none."""
        if not self.config.pack:
            return [[[int(index)] for index in indices]]
        rows = pack_step(self.examples.lengths[indices], self.row_lengths, self.rows_per_pass)
        return [[[int(indices[i]) for i in row] for row in of_length] for of_length in rows]

    def make_batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the batch of a step of these examples."""
        if self.config.loss_average == "sequence":
            weights = 1 / (len(indices) * self.num_targets[indices])
        else:
            weights = np.full(len(indices), 1 / self.num_targets[indices].sum())
        weight_of = dict(zip(map(int, indices), weights, strict=True))
        return tuple(
            self._make_passes(shape, rows, weight_of)
            for shape, rows in zip(self.shapes, self.rows_of(indices), strict=True)
        )

    def _make_passes(self, shape: Shape, rows: list[list[int]], weight_of: dict[int, float]) -> Passes:
        flat = (shape.num_passes * shape.rows_per_pass, shape.row_length)
        passes = {
            "tokens": np.full(flat, self.examples.pad, np.int32),
            "targets": np.full(flat, self.examples.pad, np.int32),
            "positions": np.zeros(flat, np.int32),
            "segment_ids": np.zeros(flat, np.int32),
            "loss_weights": np.zeros(flat, np.float32),
        }
        for row, members in enumerate(rows):
            begin = 0
            for segment, index in enumerate(members, 1):
                tokens, loss_mask = self.examples[index]
                end = begin + len(tokens)
                passes["tokens"][row, begin:end] = tokens
                passes["targets"][row, begin : end - 1] = tokens[1:]
                passes["positions"][row, begin:end] = np.arange(len(tokens))
                passes["segment_ids"][row, begin:end] = segment
                passes["loss_weights"][row, begin : end - 1] = weight_of[index] * loss_mask[1:]
                begin = end
        size = (shape.num_passes, shape.rows_per_pass, shape.row_length)
        num_passes = np.array(math.ceil(len(rows) / shape.rows_per_pass), np.int32)
        return {name: x.reshape(size) for name, x in passes.items()} | {"num_passes": num_passes}

    def filling(self) -> float:
        """Return the share of all computed positions that hold a token."""
        return int(self.examples.lengths.sum()) * self.config.num_epochs / self._num_positions
