"""The stage lengths of curation: the number of tokens of each trace under the tokenizer that training uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pyarrow as pa

from data_tools.curation.stage import Stage, verdicts
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types

VERSION = 1


@dataclass(frozen=True)
class LengthsConfig:
    """How long traces are."""

    tokenizer: InputPath = ""
    """Directory or hub id of the model that will be trained: traces are counted in its tokens."""
    max_tokens: int = 0
    """Longest trace that is kept, in tokens; 0: any length."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_tokens < 0:
            raise UserError(f"max_tokens is {self.max_tokens}: it must be 0 or more")


def stage(config: LengthsConfig) -> Stage:
    """Return the stage. It adds `num_thinking_tokens`. Raises UserError if the tokenizer is not found."""
    from s1jax.checkpoint.source import resolve_source

    if not config.tokenizer:
        raise UserError("the stage lengths needs --lengths.tokenizer: the model that will be trained")
    source = resolve_source(config.tokenizer, weights=False)
    settings = {"tokenizer": source.tokenizer_fingerprint, "max_tokens": config.max_tokens}
    count = partial(_count_part, str(source.files), config.max_tokens)
    return Stage("lengths", VERSION, settings, lambda rows: rows.map(count, "thinking"))


def _count_part(files: str, max_tokens: int, rows: pa.Table) -> pa.Table:
    lengths = count_tokens(files, rows["thinking"].to_pylist())
    reason = f"the trace is longer than {max_tokens} tokens"
    reasons = [reason if max_tokens and length > max_tokens else None for length in lengths]
    details = [f"{length} tokens" if why else None for why, length in zip(reasons, lengths, strict=True)]
    return verdicts(rows, reasons, details, num_thinking_tokens=pa.array(lengths, pa.int32()))


def count_tokens(files: str, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text, as training encodes it. `files` is the directory of a tokenizer."""
    encoder = _encoder(files)
    return [len(encoder.encode_text(text.strip())) for text in texts]


@cache
def _encoder(files: str):
    """Return the encoder of a tokenizer. It is loaded once per process."""
    from s1jax.checkpoint.source import load_tokenizer, resolve_source
    from s1jax.data.encoder import Encoder

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each process has one core
    return Encoder.of(load_tokenizer(resolve_source(Path(files), weights=False)))
