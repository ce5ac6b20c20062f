"""Packing: tokenised examples -> the batch of each training step. Several examples share a row, because padding would be most of a batch.

Every process makes the whole batch: token ids are small. A batch consists of micro-batches, whose gradients the step adds up. Each
micro-batch has the same number of rows. The rows of a step's last micro-batches may be shorter: with 16 examples per step, full-length rows
would leave a tenth to a third of the positions empty.

Invariants:
- A step takes exactly `batch_size` examples (the last step of an epoch takes the remainder), each with the weight that it would have
  without packing. So packing affects only rounding. The loss weights of a batch sum to 1.
- A run has few shapes, one per row length, and they never change, so the step is compiled once.
- A batch is a pure function of (examples, config, step), and the packer has no state to save.
- Every epoch covers every example once, in a new order.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np
from jaxtyping import Int

from s1jax.data.examples import DataConfig, Examples
from s1jax.runtime.errors import UserError

MicroBatches = dict[str, np.ndarray]
"""M micro-batches of R rows of T tokens. Arrays [M, R, T]: int32 `tokens`, `targets` (the next token), `positions` (from 0 within each
example) and `segment_ids` (from 1 within each row, 0 for padding), and float32 `loss_weights` (the weight of predicting `targets`).
Scalar: int32 `num_micro_batches`. The step computes the first so many of the M and skips the others, which are empty."""
Batch = tuple[MicroBatches, ...]
"""The batch of a step: one `MicroBatches` for each `Shape` of the run."""
Lengths = Sequence[int] | Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Shape:
    """The shape of the micro-batches of one row length. It is the same in all steps of a run."""

    max_micro_batches: int
    """M: the largest number that any step needs."""
    rows_per_micro_batch: int
    """R: rows over the whole mesh."""
    row_length: int
    """T: tokens per row."""


def rows_per_micro_batch(config: DataConfig, row_length: int, num_shards: int) -> int:
    """Return R, the rows of a micro-batch: a multiple of `num_shards`.

    Raises UserError if the configured number is no multiple of `num_shards`, or if a micro-batch is too large for an array.
    """
    smallest = 1 if config.pack else config.batch_size
    rows = config.rows_per_micro_batch or math.ceil(smallest / num_shards) * num_shards
    if rows % num_shards:
        raise UserError(
            f"rows_per_micro_batch is {rows}: it must be a multiple of {num_shards}, the number of shards of a batch (data x fsdp)"
        )
    # The second term: packed attention numbers the pairs of blocks of 256 tokens.
    if rows * max(row_length, (row_length // 256) ** 2) >= 2**31:
        raise UserError(
            f"{rows} x {row_length} tokens are too large a micro-batch for an array: lower rows_per_micro_batch or row_length"
        )
    return rows


def bucket_lengths(config: DataConfig, longest: int, length_shards: int = 1) -> list[int]:
    """Return the row lengths that micro-batches may have, longest first: at most `num_row_lengths`, each half of the one before.

    The first is `row_length`, or by default `longest`, the length of the longest example. All except a configured `row_length` are rounded
    up to a multiple of `pad_multiple` and of `length_shards`, the number of shards of a row. Raises UserError if `row_length` is no
    multiple of `length_shards`.
    """
    if config.row_length and config.row_length % length_shards:
        raise UserError(
            f"row_length is {config.row_length}: it must be a multiple of {length_shards}, the shards of a row (the mesh's sequence axis)"
        )
    multiple = math.lcm(config.pad_multiple, length_shards)
    lengths = [config.row_length or math.ceil(longest / multiple) * multiple]
    for _ in range(config.num_row_lengths - 1 if config.pack else 0):
        half = math.ceil(lengths[-1] / 2 / multiple) * multiple
        if half >= lengths[-1]:
            break
        lengths.append(half)
    return lengths


def pack(lengths: Lengths, capacities: Sequence[int]) -> list[list[int]] | None:
    """Distribute items of these lengths over rows of these capacities. Return the items of each row, or None if best fit finds no way.

    The longest item comes first. If all capacities are equal, this needs at most 11/9 of the fewest possible rows, plus one (Johnson 1974).
    """
    rows: list[list[int]] = [[] for _ in capacities]
    by_room = sorted((room, row) for row, room in enumerate(capacities))
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(by_room, (lengths[item], -1))
        if place == len(by_room):
            return None
        room, row = by_room.pop(place)
        rows[row].append(item)
        bisect.insort(by_room, (room - lengths[item], row))
    return rows


def pack_step(lengths: Lengths, row_lengths: Sequence[int], rows_per_micro_batch: int) -> list[list[list[int]]]:
    """Distribute the items of a step over as few positions as best fit finds. Return, for each row length, the items of its rows.

    A step has any number of micro-batches of the first row length, which is the longest, and at most one of each other length. Leaving out
    lengths that this step does not use changes nothing. No item may be longer than the longest rows.
    """
    # A large item fits only the longest rows, and no two share one. So their number bounds the number of longest rows from below.
    num_large = sum(n > max(row_lengths[0] / 2, *row_lengths[1:], 0) for n in lengths)
    for num_positions, counts in _micro_batch_counts(len(lengths), tuple(row_lengths), rows_per_micro_batch):
        if num_positions < sum(lengths) or counts[0] * rows_per_micro_batch < num_large:
            continue
        capacities = [[length] * n * rows_per_micro_batch for length, n in zip(row_lengths, counts, strict=True)]
        if rows := pack(lengths, [*itertools.chain(*capacities)]):
            rest = iter(rows)
            return [list(itertools.islice(rest, len(x))) for x in capacities]
    raise AssertionError("unreachable: rows of the longest length with one item each hold all items")


@functools.lru_cache(maxsize=16)
def _micro_batch_counts(
    num_items: int, row_lengths: tuple[int, ...], rows_per_micro_batch: int
) -> list[tuple[int, tuple[int, ...]]]:
    """Return all choices of a number of micro-batches per row length, each as (positions in all, counts), the fewest positions first."""
    max_count = math.ceil(num_items / rows_per_micro_batch)
    counts = itertools.product(range(max_count + 1), *[(0, 1)] * (len(row_lengths) - 1))
    return sorted((sum(map(operator.mul, n, row_lengths)) * rows_per_micro_batch, n) for n in counts)


def num_steps(num_examples: int, config: DataConfig) -> int:
    """Return the number of steps of the whole run. The last step of an epoch may take fewer examples."""
    return math.ceil(num_examples / config.batch_size) * config.num_epochs


def step_examples(num_examples: int, config: DataConfig) -> grain.MapDataset[Int[np.ndarray, " n"]]:
    """Return the indices of the examples of each step; there are `num_steps` steps."""
    # Grain shuffles epoch e with seed + e. Without this hash, the second epoch of seed 42 would be the first epoch of seed 43.
    seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    order = grain.MapDataset.range(num_examples).shuffle(seed)
    # `batch` comes before `repeat`, so that no batch spans two epochs; `shuffle` still learns the epoch.
    return order.batch(config.batch_size, batch_fn=np.array).repeat(config.num_epochs)


class Packer:
    """Makes the batches of a run."""

    def __init__(
        self,
        examples: Examples,
        config: DataConfig,
        num_shards: int = 1,
        length_shards: int = 1,
        steps: Sequence[Int[np.ndarray, " _"]] | None = None,
    ):
        """Find the shapes that serve every step.

        The mesh splits the rows of a micro-batch into `num_shards` parts, and each row into `length_shards` parts. `steps` holds the
        indices of the examples of each step (default: `step_examples`). Raises UserError if an example is longer than `row_length`, or as
        `rows_per_micro_batch` and `bucket_lengths` do.
        """
        self.examples, self.config = examples, config
        self.steps = step_examples(len(examples), config) if steps is None else steps
        longest = int(examples.lengths.max())
        self.row_lengths = bucket_lengths(config, longest, length_shards)
        length = self.row_lengths[0]
        if longest > length:
            name = examples.row_ids[int(examples.lengths.argmax())]
            raise UserError(
                f"row_length is {length}, but example {name} has {longest} tokens: raise it to {longest}, or set max_length "
                f"to {length} and too_long to truncate"
            )
        self.rows_per_micro_batch = rows_per_micro_batch(config, length, num_shards)
        num_rows = np.array([[len(rows) for rows in self.rows_of(indices)] for indices in self.steps])
        counts = -(-num_rows // self.rows_per_micro_batch)
        self._num_positions = int((counts @ self.row_lengths).sum()) * self.rows_per_micro_batch
        # Each row length makes the compiled step larger, so those that no step needs are dropped.
        needed = [(int(n), length) for n, length in zip(counts.max(axis=0), self.row_lengths, strict=True) if n]
        self.row_lengths = [length for _, length in needed]
        self.shapes = tuple(Shape(n, self.rows_per_micro_batch, length) for n, length in needed)
        # The first token of an example is never a target.
        self.num_targets = np.array([examples[i][1][1:].sum() for i in range(len(examples))])

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        if step >= len(self):  # Grain would start again from the first step
            raise IndexError(step)
        return self.make_batch(self.steps[step])

    def rows_of(self, indices: Int[np.ndarray, " n"]) -> list[list[list[int]]]:
        """Return, for each row length, the examples of each row of a step. Rows of a micro-batch may be empty."""
        if not self.config.pack:
            return [[[int(index)] for index in indices]]
        rows = pack_step(self.examples.lengths[indices], self.row_lengths, self.rows_per_micro_batch)
        return [[[int(indices[i]) for i in row] for row in of_length] for of_length in rows]

    def make_batch(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the batch of a step that takes these examples."""
        if self.config.loss_average == "sequence":
            weights = 1 / (len(indices) * self.num_targets[indices])
        else:
            weights = np.full(len(indices), 1 / self.num_targets[indices].sum())
        weight_of = dict(zip(map(int, indices), weights, strict=True))
        shapes_and_rows = zip(self.shapes, self.rows_of(indices), strict=True)
        return tuple(self._make_micro_batches(shape, rows, weight_of) for shape, rows in shapes_and_rows)

    def _make_micro_batches(self, shape: Shape, rows: list[list[int]], weight_of: dict[int, float]) -> MicroBatches:
        """Return the arrays of one shape. `rows` holds the examples of each row, `weight_of` the loss weight of a token of each example."""
        size = (shape.max_micro_batches, shape.rows_per_micro_batch, shape.row_length)
        batch = {name: np.zeros(size, np.int32) for name in ("tokens", "targets", "positions", "segment_ids")}
        batch["loss_weights"] = np.zeros(size, np.float32)
        batch["tokens"] += self.examples.pad
        batch["targets"] += self.examples.pad
        for i, members in enumerate(rows):
            row = {name: x[divmod(i, shape.rows_per_micro_batch)] for name, x in batch.items()}
            begin = 0
            for segment, index in enumerate(members, 1):
                tokens, loss_mask = self.examples[index]
                end = begin + len(tokens)
                row["tokens"][begin:end] = tokens
                row["targets"][begin : end - 1] = tokens[1:]
                row["positions"][begin:end] = np.arange(len(tokens))
                row["segment_ids"][begin:end] = segment
                row["loss_weights"][begin : end - 1] = weight_of[index] * loss_mask[1:]
                begin = end
        batch["num_micro_batches"] = np.array(math.ceil(len(rows) / shape.rows_per_micro_batch), np.int32)
        return batch

    def filling(self) -> float:
        """Return the fraction of the run's positions that hold a token."""
        return int(self.examples.lengths.sum()) * self.config.num_epochs / self._num_positions
