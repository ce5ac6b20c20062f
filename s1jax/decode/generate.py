"""One question to one model: the budget-forced answer is streamed as it is decoded."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TextIO

import tyro

from s1jax.checkpoint.source import resolve_source
from s1jax.data.chat import check_text
from s1jax.data.condition import Condition, check_integer
from s1jax.decode.engine import load_engine
from s1jax.decode.request import Completion, Request
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.command import counted
from s1jax.runtime.fields import InputPath
from s1jax.runtime.terminal import for_stream

logger = logging.getLogger(__name__)

STEPS_PER_UPDATE = 8
RESET, DIM, BOLD, YELLOW, GREEN = "\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[1;33m", "\x1b[1;32m"


@dataclass(frozen=True)
class GenerateConfig:
    """One question to one model. Counts are in tokens."""

    model: InputPath
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    prompt: str
    """The question."""
    condition: Annotated[Condition, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Condition(max_thinking_tokens=2048)
    )
    seed: int = 0
    """Seed of the random draws at a temperature above 0."""
    attention: CacheBackend | None = None
    """Backend of attention over caches. Default: `pallas` on a GPU, `xla` elsewhere. `xla` runs on every device."""


def generate(config: GenerateConfig, out: TextIO) -> Completion:
    """Decode the answer; stream its text to `out`, and log a summary."""
    condition = config.condition
    check_integer("seed", config.seed)
    check_text("the prompt", config.prompt)
    source = resolve_source(config.model)
    engine, chat = load_engine(source, condition.dtype, int8=condition.int8, attention=config.attention, num_rows=1)
    prompt, ignore_ids = chat.encode_prompt(config.prompt), chat.encode_text(condition.ignore_text)
    request = Request(tuple(prompt), condition, tuple(ignore_ids), seed=config.seed)
    ticket = engine.submit(request)
    stream = TranscriptStream(chat.decode, out)
    started = time.monotonic()
    try:
        while not (finished := engine.step(STEPS_PER_UPDATE)):
            stream.show(engine.progress()[ticket])
        ((_, (completion,)),) = finished
        seconds = time.monotonic() - started
        stream.show(completion, whole=True)
    finally:
        stream.close()
    ended = "the budget" if completion.num_thinking == condition.max_thinking_tokens else "the model"
    logger.info(
        "%s (budget %d), ended by %s; %s ignored; %s; %.1f s, compilation included",
        counted(completion.num_thinking, "thinking token"), condition.max_thinking_tokens, ended,
        counted(completion.num_ignored, "stop"), counted(completion.num_answer, "answer token"), seconds,
    )  # fmt: skip
    return completion


class TranscriptStream:
    """Writes a growing completion as text, with a heading above the thinking and one above the answer.

    On a terminal injected text has a colour. Elsewhere, or if NO_COLOR is set, it stands in [[double brackets]].
    """

    def __init__(self, decode: Callable[..., str], out: TextIO):
        self.decode, self.out = decode, out
        self.color = out.isatty() and not os.environ.get("NO_COLOR")
        self.shown = 0
        self.heading = ""
        self.last = ""
        """The last text written under the heading."""
        self.answered = False

    def show(self, completion: Completion, whole: bool = False) -> None:
        """Write the tokens since the last call. Unless the completion is `whole`, tokens up to an incomplete character or string wait."""
        size = len(completion.tokens)
        while self.shown < size:
            kind = self._kind(completion, self.shown)
            end = next((i for i in range(self.shown, size) if self._kind(completion, i) != kind), size)
            ids = completion.tokens[self.shown : end]
            text = self.decode(ids, skip_special_tokens=kind != "thinking")
            # An injected string is marked as a whole, so it waits for the token after it.
            if end == size and not whole and (kind in ("injected", "delimiter") or text.endswith("\ufffd")):
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

    @staticmethod
    def _kind(completion: Completion, index: int) -> str:
        """Return the part that a token belongs to: thinking, injected (into the thinking), delimiter or answer."""
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
        text = for_stream(self.out, text)
        style = {"thinking": DIM, "injected": YELLOW, "delimiter": GREEN, "answer": ""}[kind]
        self.out.write(f"{RESET}{style}{text}" if self.color else text)
