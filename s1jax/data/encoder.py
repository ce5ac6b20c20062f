"""Text <-> token ids of one tokenizer, for text that must not command a model.

Text from a user, a dataset or a model never becomes a markup token, even if it spells one. Text of a chat template or a thinking format
does. Markup is every special token, and every other added token that is spelt as a sign: `<think>`, `[INST]`. Added tokens that hold
whitespace, or begin or end in a letter or a digit, are ordinary words.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.terminal import shortened

if TYPE_CHECKING:  # the import takes 0.6 s, and grading reads only constants of this folder
    from transformers import PreTrainedTokenizerBase

Segment = tuple[str, bool]
"""A text, and whether added tokens in it are meant as such."""
_MARKUP = re.compile(r"[^\w\s]\S*\w\S*[^\w\s]")


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encodes texts with one tokenizer. Every method that encodes raises UserError if a text is not valid Unicode."""

    tokenizer: PreTrainedTokenizerBase
    added_tokens: Mapping[str, int]
    """All special and other added tokens."""
    markup: re.Pattern[str]
    """Finds markup tokens."""
    cuts: re.Pattern[str]
    """Finds where a markup token begins that is not special. Special tokens are left to an option of the tokenizer."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """Return the encoder of a tokenizer."""
        added_tokens = tokenizer.get_added_vocab()
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        signs = {token for token in added_tokens if _MARKUP.fullmatch(token)} - special
        return cls(tokenizer, added_tokens, re.compile(_any_of(special | signs)), re.compile(f"(?={_any_of(signs)})"))

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of a text of others. A markup token that it spells is cut in two."""
        begins = [found.start() + 1 for found in self.cuts.finditer(text)]
        pieces = (text[a:b] for a, b in itertools.pairwise([0, *begins, len(text)]))
        return [i for piece in pieces for i in self._encode(piece)]

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Return the ids of texts in a row, some of which are a template's.

        The result is cut at the markup tokens of the templates. All text between two of them is one piece, since it may merge.
        """
        ids, piece = [], ""
        for text, is_template in segments:
            begin = 0
            for found in self.markup.finditer(text) if is_template else ():
                ids += self.encode_text(piece + text[begin : found.start()])
                ids.append(self.added_tokens[found[0]])
                piece, begin = "", found.end()
            piece += text[begin:]
        return ids + self.encode_text(piece)

    def check_keeps(self, text: str) -> None:
        """Raise UserError if the tokenizer loses some of a template's text."""
        if (spelt := self.decode(self.encode_segments([(text, True)])).strip()) != text.strip():
            name = repr(self.tokenizer.name_or_path)
            raise UserError(f"the tokenizer {name} loses text: it writes {shortened(text)} as {shortened(spelt)}")

    def check_pieces(self, text: str) -> None:
        """Raise UserError if the tokenizer reads a template's text as other ids than the pieces of `encode_segments`."""
        if self.encode_segments([(text, True)]) != self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            name = repr(self.tokenizer.name_or_path)
            raise UserError(f"the tokenizer {name} reads a prompt as other tokens if it is cut at its special tokens")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of some ids as the tokens spell it, with or without special tokens."""
        options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **options))

    def _encode(self, text: str) -> list[int]:
        check_text(f"the text {shortened(text)}", text)
        with named_errors(self.tokenizer, "encode a text"):
            # verbose=False: no warning about lengths, because `examples.py` checks them.
            encoding = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return encoding["input_ids"]


def check_text(name: str, text: str) -> None:
    """Raise UserError, with the name of the text, if `text` holds a lone surrogate, as bytes other than UTF-8 give."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start]
        kind = "a byte that is not UTF-8" if "\udc80" <= found <= "\udcff" else "a lone surrogate"
        raise UserError(f"{name} is not valid Unicode: character {error.start + 1} is {kind} ({found!r})") from None


@contextlib.contextmanager
def named_errors(tokenizer: PreTrainedTokenizerBase, task: str) -> Iterator[None]:
    """Turn any error of the tokenizer or of jinja2, which have no common base class, into one UserError that names the tokenizer."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} cannot {task} ({reason_of(error)}): use the tokenizer of a chat model"
        ) from error


def _any_of(tokens: Iterable[str]) -> str:
    """Return a pattern that finds the longest of some tokens, and nothing if there are none."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)"
