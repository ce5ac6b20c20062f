"""The stage lengths of curation: the number of tokens of each trace under the tokenizer that training uses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import regex

from data_tools.curation.stage import Stage, verdicts
from s1jax.data.encoder import Encoder
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


def count_tokens(files: str, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, as training encodes it. `files` is the directory of a tokenizer."""
    counter = _counter(files)
    return [counter.count(text.strip()) for text in texts]


class TokenCounter:
    """Counts the tokens of texts.

    A byte-level BPE cuts a text into pieces by a pattern, and encodes each piece by itself. Most pieces occur again and again, so their
    numbers of tokens are kept. This is three times as fast as encoding the text. It is done only for ASCII, about which two libraries for
    patterns cannot disagree, and for texts without added tokens, at which a tokenizer cuts first.
    """

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        pattern = _piece_pattern(encoder)
        self._pattern = None if pattern is None else regex.compile(pattern)
        self._added = re.compile("|".join(map(re.escape, encoder.added_tokens)) or r"(?!)")
        self._lengths = _Lengths(encoder)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        if self._pattern is None or not text.isascii() or self._added.search(text):
            return len(self._encoder.encode_text(text))
        return sum(map(self._lengths.__getitem__, self._pattern.findall(text)))


class _Lengths(dict[str, int]):
    """The number of tokens of each piece."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self._encoder = encoder

    def __missing__(self, piece: str) -> int:
        self[piece] = length = len(self._encoder.encode_text(piece))
        return length


def _piece_pattern(encoder: Encoder) -> str | None:
    """Return the pattern by which a tokenizer cuts ASCII into pieces; None if it does not cut so, or adds something to a text."""
    settings = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    normalizer, steps = settings["normalizer"], (settings["pre_tokenizer"] or {}).get("pretokenizers", [])
    is_plain = settings["model"]["type"] == "BPE" and (normalizer is None or normalizer["type"] == "NFC")
    if not is_plain or [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = steps
    if split["behavior"] != "Isolated" or split["invert"] or byte_level["use_regex"] or byte_level["add_prefix_space"]:
        return None
    return split["pattern"].get("Regex")


@cache
def _counter(files: str) -> TokenCounter:
    """Return the counter of a tokenizer. It is made once per process."""
    from s1jax.checkpoint.source import load_tokenizer, resolve_source

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # each process has one core
    return TokenCounter(Encoder.of(load_tokenizer(resolve_source(Path(files), weights=False))))
