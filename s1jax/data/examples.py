"""Training rows -> tokenised examples with loss masks (paper section 4.1); `packing.py` makes batches of them.

In: rows of question, trace and answer as JSONL, Parquet or a dataset of the Hugging Face hub, in this project's columns
or in those of the published s1K and s1K-1.1.

Invariant: no row is dropped or cut in silence: it is rejected with a reason, counted, or an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from s1jax.data.chat import ChatFormat, LossOn
from s1jax.data.rows import TrainingRow
from s1jax.runtime.errors import UserError
from s1jax.runtime.processes import check_same, map_over_processes

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from s1jax.model.config import ModelConfig

LossAverage = Literal["sequence", "token"]
TooLong = Literal["error", "truncate"]


MOST_HALVINGS = 4


@dataclass(frozen=True)
class DataConfig:
    """What to train on and how to batch it; the defaults are the paper's, for s1K."""

    source: str
    """A .jsonl or .parquet file, a directory of them, or the id of a dataset on the Hugging Face hub."""
    max_length: int = 32768
    """The most tokens of one example."""
    too_long: TooLong = "error"
    """What to do with longer examples: refuse to start, or cut their end off."""
    loss_on: LossOn = "reasoning_and_answer"
    """Which part of an example is trained on."""
    loss_average: LossAverage = "sequence"
    """What weighs the same within a batch: every example, as in the paper's trainer, or every token."""
    batch_size: int = 16
    """Examples in a step, over the whole mesh."""
    num_epochs: int = 5
    """Passes over all examples, each in a new order."""
    seed: int = 42
    """Decides the order."""
    pack: bool = True
    """Put several examples into a row, which see nothing of each other; else each has a row of its own, as in the paper's trainer."""
    row_length: int | None = None
    """Tokens of a row, the longest ones; default: the longest example, rounded up to a multiple of `pad_multiple`."""
    rows_per_pass: int | None = None
    """Rows of a forward pass (a micro-batch) over the whole mesh. A step of more rows accumulates the gradients of several; default: with
    `pack` as few rows as the mesh can share out, else the whole batch."""
    pad_multiple: int = 128
    """What lengths of rows that follow from others are rounded up to a multiple of; GPU and TPU kernels work in blocks of 128."""
    halvings: int = 2
    """With `pack`: how often the length of rows may be halved, and rounded up to `pad_multiple`, for a step's last passes. Each length that
    a run uses is compiled; with more than one, gradients are always accumulated, in float32."""

    def __post_init__(self) -> None:
        for name, least in (
            ("max_length", 2), ("batch_size", 1), ("num_epochs", 1), ("row_length", 2), ("rows_per_pass", 1), ("pad_multiple", 1),
            ("halvings", 0), ("seed", 0),
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"{name} is {value}: it must be at least {least}")
        if self.halvings > MOST_HALVINGS:
            raise UserError(f"halvings is {self.halvings}: it can be at most {MOST_HALVINGS}")
        if self.seed >= 2**32:
            raise UserError(f"seed is {self.seed}: it must be below 2**32")
        for name, choices in (("too_long", TooLong), ("loss_on", LossOn), ("loss_average", LossAverage)):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}")


@dataclass(frozen=True)
class Examples:
    """Tokenised examples, laid end to end."""

    tokens: Int[np.ndarray, " total"]
    loss_mask: Bool[np.ndarray, " total"]
    """Which tokens the loss is taken on, as targets."""
    offsets: Int[np.ndarray, " n_plus_1"]
    """Example i is `tokens[offsets[i] : offsets[i + 1]]`."""
    row_ids: tuple[str, ...]
    pad: int
    num_truncated: int
    """How many examples are cut to max_length."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, index: int) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Return tokens and loss mask of one example."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.loss_mask[span]

    @property
    def lengths(self) -> Int[np.ndarray, " n_examples"]:
        """Number of tokens of each example."""
        return np.diff(self.offsets)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that identify what is trained on: ids, masks and their order."""
        arrays = (self.tokens, self.loss_mask, self.offsets, np.array(self.pad))
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:12]

    def check_fit(self, model: ModelConfig) -> None:
        """Raise UserError for a token id that a model has no embedding of, and for an example longer than its context."""
        longest, largest = int(self.lengths.argmax()), max(int(self.tokens.max()), self.pad)
        if largest >= model.vocab_size:
            raise UserError(
                f"the tokenizer gives token id {largest}, but the model's vocab_size is {model.vocab_size}: "
                "use the tokenizer that belongs to the model"
            )
        if self.lengths[longest] > model.context_length:
            raise UserError(
                f"example {self.row_ids[longest]} has {self.lengths[longest]} tokens, but the model's context is "
                f"{model.context_length}: drop longer rows, or set max_length to {model.context_length} and too_long to "
                "truncate"
            )


def encode_rows(
    rows: Sequence[TrainingRow], chat: ChatFormat, config: DataConfig
) -> tuple[Examples, list[dict[str, Any]]]:
    """Tokenise rows; return also those that truncation leaves nothing to train on, as {row, reason, ...its columns}.

    `row` is the index in `rows`. Of several processes each tokenises its share, and all get all examples, since any may come next
    for any of them. Raises UserError if their rows differ, if an example is longer than `max_length` tokens and `too_long` is
    "error", and if no example is left.
    """
    tokens, masks, row_ids, rejects = [], [], [], []
    too_long: dict[str, int] = {}
    check_same(rows, "rows")
    encoded = map_over_processes(partial(_encode, chat, config.loss_on), rows)
    for index, (row, (ids, mask)) in enumerate(zip(rows, encoded, strict=True)):
        if len(ids) > config.max_length:
            too_long[f"{row['id']} (row {index})"] = len(ids)
        if not mask[: config.max_length].any():
            reason = f"cut to max_length {config.max_length}, no token to train on is left of {len(ids)}"
            rejects.append({**row, "row": index, "reason": reason})
            continue
        tokens.append(ids[: config.max_length])
        masks.append(mask[: config.max_length])
        row_ids.append(row["id"])
    if too_long and config.too_long == "error":
        longest = max(too_long.values())
        named = ", ".join(list(too_long)[:10]) + (f" and {len(too_long) - 10} more" if len(too_long) > 10 else "")
        raise UserError(
            f"{len(too_long)} of {len(rows)} examples are longer than max_length {config.max_length}, the longest has "
            f"{longest} tokens: {named}. Raise max_length to {longest}, drop these rows, or set too_long to truncate"
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
    chat: ChatFormat, loss_on: LossOn, row: TrainingRow
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    ids, mask = chat.encode_example(row["question"], row["thinking"], row["answer"], loss_on)
    return np.array(ids, np.int32), np.array(mask, bool)
