"""The examples of a step -> rows of several examples -> batches of one shape: of s1K's lengths, padding would be most.

In: tokenised examples (`data.py`). Out: a Grain dataset whose element `step` is the global batch of that step, which every process makes
whole: ids are small. A batch is a number of passes of the same few rows; a step that needs more rows than one pass has accumulates the
gradients of several.

Invariants:
- A step takes exactly `batch_size` examples (an epoch's last step what is left), and each weighs what it would weigh alone: packing changes
  nothing but rounding. So rows are packed within a step, never across steps, and the packer has no state to save.
- A batch is a pure function of (examples, config, step), the same in every process and after every restart; to resume is to index.
- Every epoch covers every example once, in a new order. The loss weights of a batch sum to 1.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from s1jax.data import DataConfig, Examples

if TYPE_CHECKING:
    import grain
    from jaxtyping import Int

Batch = dict[str, np.ndarray]
"""int32 `tokens`, `targets` (the next token), `positions` (from 0 in each example) and `segment_ids` (from 1 in each row; 0 where there
is no example), and float32 `loss_weights` (of predicting `targets`), all [M, R, T]: M passes of R rows of T tokens; `num_passes`, the
number of passes that hold anything."""


MOST_EXAMPLES = 50_000_000
"""Of a run, all epochs counted: each step is packed before the first is made."""


@dataclass(frozen=True)
class Shape:
    """The one shape of all batches of a run."""

    num_passes: int
    """M: the most passes of a step."""
    rows_per_pass: int
    """R, over the whole mesh."""
    row_length: int
    """T, in tokens."""


def shape_of(config: DataConfig, most_rows: int, row_length: int, num_shards: int) -> Shape:
    """Return the shape of batches of at most `most_rows` rows, where a pass has a multiple of `num_shards` of them.

    Raises ValueError for `rows_per_pass` that is none.
    """
    rows = config.rows_per_pass or math.ceil(1 if config.pack else most_rows / num_shards) * num_shards
    if rows % num_shards:
        raise ValueError(
            f"rows_per_pass {rows} is no multiple of {num_shards}, the shards of a batch on this mesh (its data x fsdp): "
            f"choose a multiple of {num_shards}, or give more of the devices to the mesh's sequence or tensor"
        )
    if rows * row_length >= 2**31:
        raise ValueError(
            f"a pass of {rows} rows of {row_length} tokens: no array has room for it; lower rows_per_pass or row_length"
        )
    return Shape(math.ceil(most_rows / rows), rows, row_length)


def pack(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Share out items of these lengths to rows; return the items of each row.

    Best fit, longest first (Johnson 1974: at most 11/9 of the fewest rows possible, and one more). Raises ValueError for an item that is
    longer than a row.
    """
    rows: list[list[int]] = []
    by_room: list[tuple[int, int]] = []  # (room left, row), the least room first
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[item] > row_length:
            raise ValueError(f"an example of {lengths[item]} tokens does not fit a row of {row_length}")
        place = bisect.bisect_left(by_room, (lengths[item], -1))
        if place == len(by_room):
            room, row = row_length, len(rows)
            rows.append([])
        else:
            room, row = by_room.pop(place)
        rows[row].append(item)
        bisect.insort(by_room, (room - lengths[item], row))
    return rows


def num_steps(num_examples: int, config: DataConfig) -> int:
    """Return the number of steps of the whole run; an epoch's last one may take fewer examples.

    Raises ValueError for more than `MOST_EXAMPLES`.
    """
    if num_examples * config.num_epochs > MOST_EXAMPLES:
        raise ValueError(
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
        steps: Sequence[np.ndarray] | None = None,
    ):
        """Find the shape that serves every step; a pass has a multiple of `num_shards` rows.

        `steps` are the examples of each, by default those of `step_examples`.
        Raises ValueError for an example that is longer than `row_length`, or `rows_per_pass` that is no multiple of `num_shards`.
        """
        self.examples, self.config = examples, config
        self.steps = step_examples(len(examples), config) if steps is None else steps
        longest = int(examples.lengths.max())
        length = config.row_length or math.ceil(longest / config.pad_multiple) * config.pad_multiple
        if longest > length:
            name = examples.row_ids[int(examples.lengths.argmax())]
            raise ValueError(
                f"row_length is {length}, but example {name} has {longest} tokens: raise it to {longest}, or set max_length "
                f"to {length} and too_long to truncate"
            )
        most_rows = config.batch_size
        if config.pack:
            most_rows = max(len(pack(examples.lengths[indices], length)) for indices in self.steps)
        self.shape = shape_of(config, most_rows, length, num_shards)
        # The first token of an example is nobody's target.
        self.num_targets = np.array([examples[i][1][1:].sum() for i in range(len(examples))])

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        if step >= len(self):  # Grain would begin again
            raise IndexError(step)
        return self.make_batch(self.steps[step])

    def rows_of(self, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
        """Return the examples of each row that a step of these examples has."""
        if not self.config.pack:
            return [[int(index)] for index in indices]
        return [[int(indices[i]) for i in row] for row in pack(self.examples.lengths[indices], self.shape.row_length)]

    def make_batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return the batch of a step of these examples."""
        if self.config.loss_average == "sequence":
            weights = 1 / (len(indices) * self.num_targets[indices])
        else:
            weights = np.full(len(indices), 1 / self.num_targets[indices].sum())
        weight_of = dict(zip(map(int, indices), weights, strict=True))
        shape = (self.shape.num_passes * self.shape.rows_per_pass, self.shape.row_length)
        batch = {
            "tokens": np.full(shape, self.examples.pad, np.int32),
            "targets": np.full(shape, self.examples.pad, np.int32),
            "positions": np.zeros(shape, np.int32),
            "segment_ids": np.zeros(shape, np.int32),
            "loss_weights": np.zeros(shape, np.float32),
        }
        rows = self.rows_of(indices)
        for row, members in enumerate(rows):
            begin = 0
            for segment, index in enumerate(members, 1):
                tokens, loss_mask = self.examples[index]
                end = begin + len(tokens)
                batch["tokens"][row, begin:end] = tokens
                batch["targets"][row, begin : end - 1] = tokens[1:]
                batch["positions"][row, begin:end] = np.arange(len(tokens))
                batch["segment_ids"][row, begin:end] = segment
                batch["loss_weights"][row, begin : end - 1] = weight_of[index] * loss_mask[1:]
                begin = end
        passes = (self.shape.num_passes, self.shape.rows_per_pass, self.shape.row_length)
        batch = {name: x.reshape(passes) for name, x in batch.items()}
        return batch | {"num_passes": np.array(math.ceil(len(rows) / self.shape.rows_per_pass), np.int32)}

    def filling(self) -> float:
        """Return the share of all computed positions that hold a token."""
        rows = [len(self.rows_of(indices)) for indices in self.steps]
        passes = sum(math.ceil(n / self.shape.rows_per_pass) for n in rows)
        positions = passes * self.shape.rows_per_pass * self.shape.row_length
        return int(self.examples.lengths.sum()) * self.config.num_epochs / positions
