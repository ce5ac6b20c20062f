"""Training rows -> tokenised examples with loss masks (paper section 4.1). `packing.py` makes batches of them.

In: rows of `rows.py` and a tokenizer. Out: `Examples`, and the rejected rows.

Invariant: no row is dropped or cut silently. It is rejected with a reason, counted as cut, or an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from s1jax.data.chat import ChatFormat, LossOn
from s1jax.data.control_methods import METHOD_FORMATS
from s1jax.data.rows import TrainingRow
from s1jax.data.thinking_format import AUTO, NONE, find_format
from s1jax.model.config import ModelConfig
from s1jax.runtime.command import listed
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.processes import check_same, map_over_processes

LossAverage = Literal["sequence", "token"]
TooLong = Literal["error", "truncate"]
MAX_ROW_LENGTHS = 5


@dataclass(frozen=True)
class DataConfig:
    """What to train on, and how to make batches of it. The defaults are the paper's values for s1K."""

    source: InputPath
    """A .jsonl or .parquet file, a directory of them (its train split, if there is one), or the id of a dataset on the Hugging Face hub."""
    max_length: int = 32768
    """Largest number of tokens of an example."""
    too_long: TooLong = "error"
    """What happens to longer examples: `error` refuses to start, `truncate` cuts off their end."""
    loss_on: LossOn = "reasoning_and_answer"
    """Which part of an example is trained on."""
    thinking_format: str = AUTO
    """How thinking is written: s1, think, openthinker, a pair of texts OPEN...END, or auto (see `TraceSettings`). Rows with a label of
    step-conditional control have the format steps, whatever is set here."""
    loss_average: LossAverage = "sequence"
    """How a batch is averaged: `sequence` gives every example the same weight, as the paper's trainer does; `token` every token."""
    batch_size: int = 16
    """Examples per step, over the whole mesh."""
    num_epochs: int = 5
    """How often the run goes through all examples, each time in a new order."""
    seed: int = 42
    """Determines the order of the examples."""
    pack: bool = True
    """Put several examples into one row, where they do not see each other. Otherwise each example has its own row, as in the paper's
    trainer."""
    row_length: int | None = None
    """Tokens of the longest rows. Default: the length of the longest example, rounded up to a multiple of `pad_multiple`."""
    rows_per_micro_batch: int | None = None
    """Rows of a micro-batch, over the whole mesh. A step with more rows adds up the gradients of several micro-batches. Default: with
    `pack`, as few rows as the mesh can split; without, one micro-batch for the whole batch."""
    pad_multiple: int = 128
    """Computed row lengths are rounded up to a multiple of this. Kernels for GPUs and TPUs work in blocks of 128."""
    num_row_lengths: int = 3
    """With `pack`: the number of row lengths (buckets), each half of the one before, rounded up to `pad_multiple`. A step has at most one
    micro-batch of each shorter length. Every length makes the compiled step larger. 1: all rows have the same length."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, smallest in (
            ("max_length", 2), ("batch_size", 1), ("num_epochs", 1), ("row_length", 2), ("rows_per_micro_batch", 1),
            ("pad_multiple", 1), ("num_row_lengths", 1), ("seed", 0),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < smallest:
                raise UserError(f"{name} is {value}: it must be at least {smallest}")
        if self.thinking_format == NONE:
            raise UserError(f"thinking_format {NONE} is for decoding only: training rows have traces")
        if self.thinking_format != AUTO and find_format(self.thinking_format).name in METHOD_FORMATS.values():
            raise UserError(
                f"thinking_format is {self.thinking_format}: only rows that are labelled step_conditional are written in steps, with any "
                "setting; give the format of the other rows, or leave it out"
            )
        if self.num_row_lengths > MAX_ROW_LENGTHS:
            raise UserError(f"num_row_lengths is {self.num_row_lengths}: it must be at most {MAX_ROW_LENGTHS}")
        if self.seed >= 2**32:
            raise UserError(f"seed is {self.seed}: it must be below 2**32")


@dataclass(frozen=True)
class Examples:
    """Tokenised examples, concatenated."""

    tokens: Int[np.ndarray, " total"]
    loss_mask: Bool[np.ndarray, " total"]
    """True for tokens that are trained on (as targets)."""
    offsets: Int[np.ndarray, " n_plus_1"]
    """Example i is `tokens[offsets[i] : offsets[i + 1]]`."""
    row_ids: tuple[str, ...]
    """The id of each example's row."""
    pad: int
    """Token id that fills empty positions of a batch."""
    num_truncated: int
    """Number of examples that were cut to max_length."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.loss_mask[span]

    @property
    def lengths(self) -> Int[np.ndarray, " n_examples"]:
        """Number of tokens of each example."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """12 hex digits of a hash of token ids, masks and order."""
        arrays = (self.tokens, self.loss_mask, self.offsets, np.array(self.pad))
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:12]

    def check_fit(self, model: ModelConfig) -> None:
        """Raise UserError unless the model has a context as long as the longest example."""
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > model.context_length:
            raise UserError(
                f"example {self.row_ids[longest][:80]} has {self.lengths[longest]} tokens, but the model's context is "
                f"{model.context_length}: drop longer rows, or set max_length to {model.context_length} and too_long to "
                "truncate"
            )


def encode_rows(
    rows: Sequence[TrainingRow], chat: ChatFormat, config: DataConfig
) -> tuple[Examples, list[dict[str, Any]]]:
    """Tokenise rows. Return the examples, and the rejected rows as {row, reason, ...the row's columns}; `row` is the index in `rows`.

    The label of a row says what its question asks for, and whether its trace is written in steps. `chat` has the thinking format of all
    other rows. A row is rejected if truncation leaves nothing to train on. If there are several processes, each tokenises its share, and
    all get all examples.

    Raises UserError if the processes have different rows, if an example is longer than `max_length` while `too_long` is "error",
    or if no example is left.
    """
    tokens, masks, row_ids, rejects = [], [], [], []
    too_long: dict[str, int] = {}
    check_same(rows, "rows")
    methods = {row.get("method") for row in rows}
    own_formats: dict[str, ChatFormat] = {
        method: chat.in_format(name) for method, name in METHOD_FORMATS.items() if method in methods
    }
    encoded = map_over_processes(partial(_encode, chat, own_formats, config.loss_on), rows)
    for index, (row, (ids, mask)) in enumerate(zip(rows, encoded, strict=True)):
        if len(ids) > config.max_length:
            too_long[f"{row['id'][:80]} (row {index})"] = len(ids)
        if not mask[: config.max_length].any():
            reason = f"cut to max_length {config.max_length}, no token to train on is left of {len(ids)}"
            rejects.append({**row, "row": index, "reason": reason})
            continue
        tokens.append(ids[: config.max_length])
        masks.append(mask[: config.max_length])
        row_ids.append(row["id"])
    if too_long and config.too_long == "error":
        longest = max(too_long.values())
        raise UserError(
            f"{len(too_long)} of {len(rows)} examples are longer than max_length {config.max_length}, the longest has {longest} tokens. "
            f"Raise max_length to {longest}, drop these rows, or set too_long to truncate:{listed(list(too_long))}"
        )
    if not tokens:
        cause = f": {rejects[0]['reason']}; raise max_length" if rejects else ""
        raise UserError(f"no example is left of the {len(rows)} rows of {config.source}{cause}")
    return Examples(
        tokens=np.concatenate(tokens),
        loss_mask=np.concatenate(masks),
        offsets=np.cumsum([0, *map(len, tokens)], dtype=np.int64),
        row_ids=tuple(row_ids),
        pad=chat.delimiters.pad,
        num_truncated=len(too_long) - len(rejects),
    ), rejects


def _encode(
    chat: ChatFormat, own_formats: Mapping[str, ChatFormat], loss_on: LossOn, row: TrainingRow
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    texts = row["question"], row["thinking"], row["answer"], loss_on
    if "method" in row:
        ids, mask = own_formats.get(row["method"], chat).encode_example(*texts, row["method"], row["requested"])
    else:
        ids, mask = chat.encode_example(*texts)
    return np.array(ids, np.int32), np.array(mask, bool)
