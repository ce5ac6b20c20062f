"""One question to one model: a budget-forced answer, streamed as it is decoded, with thinking, injected text and answer told apart."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TextIO

import tyro

from s1jax.checkpoint.source import resolve_source
from s1jax.data.chat import check_text
from s1jax.data.condition import Condition, check_integer
from s1jax.decode.load import load_decoder
from s1jax.decode.request import Completion, Request
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.command import counted

STEPS_PER_UPDATE = 8
RESET, DIM, BOLD, YELLOW, GREEN = "\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[1;33m", "\x1b[1;32m"


@dataclass(frozen=True)
class GenerateConfig:
    """One question to one model. Counts are in tokens."""

    model: str
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    prompt: str
    """The question."""
    condition: Annotated[Condition, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Condition(max_thinking_tokens=2048)
    )
    """How to think and answer."""
    seed: int = 0
    """What tokens are drawn from at a temperature above 0."""
    attention: CacheBackend | None = None
    """What computes attention over caches; default: `pallas` on a GPU, elsewhere `xla`, for which any card's shared memory will do."""


def generate(config: GenerateConfig, out: TextIO) -> Completion:
    """Decode the answer, streaming its text to `out` and a summary to standard error."""
    condition = config.condition
    check_integer("seed", config.seed)
    check_text("the prompt", config.prompt)
    source = resolve_source(config.model)
    decoder, chat = load_decoder(source, condition.dtype, int8=condition.int8, attention=config.attention)
    prompt, ignore_ids = chat.encode_prompt(config.prompt), chat.encode_text(condition.ignore_text)
    request = Request(tuple(prompt), condition, tuple(ignore_ids), seed=config.seed)
    decoder.check(request)
    stream = TranscriptStream(chat.tokenizer, out)

    def show(completions: Mapping[int, Completion]) -> None:
        if completions:
            stream.show(completions[0])

    started = time.monotonic()
    try:
        (completion,) = decoder.decode([request], steps_per_call=STEPS_PER_UPDATE, on_progress=show)
        seconds = time.monotonic() - started
        stream.show(completion, whole=True)
    finally:
        stream.close()
    ended = "the budget" if completion.num_thinking == condition.max_thinking_tokens else "the model"
    print(
        f"{counted(completion.num_thinking, 'thinking token')} (budget {condition.max_thinking_tokens}), ended by {ended}; "
        f"{counted(completion.num_ignored, 'stop')} ignored; {counted(completion.num_answer, 'answer token')}; "
        f"{seconds:.1f} s, compilation included",
        file=sys.stderr,
    )
    return completion


class TranscriptStream:
    """Writes a growing completion as text: thinking dim, injected text marked, the answer under its own heading.

    On a terminal the parts are told apart by colour; elsewhere, or with NO_COLOR set, injected text is put in [[double brackets]].
    """

    def __init__(self, tokenizer: Any, out: TextIO):
        self.tokenizer, self.out = tokenizer, out
        self.color = out.isatty() and not os.environ.get("NO_COLOR")
        self.shown = 0
        self.heading = ""
        self.last = ""
        """The last text written under the heading."""
        self.answered = False

    def show(self, completion: Completion, whole: bool = False) -> None:
        """Write the tokens that came since the last call; a character or forced string that is not yet whole waits for its rest.

        With `whole` nothing more will come.
        """
        while self.shown < len(completion.tokens):
            kind = self._kind(completion, self.shown)
            end = self.shown
            while end < len(completion.tokens) and self._kind(completion, end) == kind:
                end += 1
            growing = end == len(completion.tokens) and not whole
            if growing and kind in ("injected", "delimiter"):
                break  # it is marked as a whole, once the token after it is there
            text = self._text(completion, end, kind)
            while growing and text.endswith("\ufffd"):
                end -= 1
                text = self._text(completion, end, kind)
            if end == self.shown:
                break
            self._write(kind, text)
            self.shown = end
        if whole and not self.answered:
            self._write("answer", " (no answer)" if self.heading == "answer" and self.last else "(no answer)")
        self.out.flush()

    def close(self) -> None:
        """End the text."""
        if self.heading:
            self.out.write((RESET if self.color else "") + "\n")
            self.out.flush()

    def _text(self, completion: Completion, end: int, kind: str) -> str:
        return self.tokenizer.decode(completion.tokens[self.shown : end], skip_special_tokens=kind != "thinking")

    @staticmethod
    def _kind(completion: Completion, index: int) -> str:
        """Return what a token is part of: thinking, injected (into the thinking), delimiter or answer."""
        if index < completion.num_thinking:
            return "injected" if completion.forced[index] else "thinking"
        return "delimiter" if completion.forced[index] else "answer"

    def _write(self, kind: str, text: str) -> None:
        heading = "thinking" if kind in ("thinking", "injected") else "answer"
        if heading != self.heading:
            bar = f"--- {heading} ---"
            before = "\n" if self.last and not self.last.endswith("\n") else ""
            self.out.write(before + (f"{RESET}{BOLD}{bar}{RESET}" if self.color else bar) + "\n")
            self.heading, self.last = heading, ""
        if kind == "delimiter":
            text = text.lstrip("\n").removeprefix("answer").lstrip("\n")
        if not self.last:
            text = text.lstrip("\n")  # no blank line below the heading
        if not text:
            return
        self.last = text
        self.answered |= kind == "answer" and not text.isspace()
        if kind in ("injected", "delimiter") and not self.color:
            text = f"[[{text}]]"
        style = {"thinking": DIM, "injected": YELLOW, "delimiter": GREEN, "answer": ""}[kind]
        self.out.write(f"{RESET}{style}{text}" if self.color else text)
