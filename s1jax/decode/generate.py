"""Questions to one model, one after another: each budget-forced answer is streamed as it is decoded."""

import io
import json
import logging
import os
import time
from dataclasses import dataclass, field
from typing import Annotated, TextIO

import tyro

from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition, check_integer
from s1jax.data.encoder import check_text
from s1jax.decode.engine import Engine, load_engine
from s1jax.decode.questions import read_questions, request_of
from s1jax.decode.request import Completion
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath
from s1jax.runtime.terminal import for_stream

logger = logging.getLogger(__name__)

STEPS_PER_UPDATE = 8
RESET, DIM, BOLD, YELLOW, GREEN = "\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[1;33m", "\x1b[1;32m"


@dataclass(frozen=True)
class GenerateConfig:
    """Questions to one model. Counts are in tokens."""

    model: InputPath
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    prompt: str | None = None
    """The question. Without it and without `--prompts`, questions are asked for at the terminal."""
    condition: Annotated[Condition, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Condition(max_thinking_tokens=2048)
    )
    prompts: Annotated[InputPath | None, tyro.conf.arg(metavar="FILE")] = None
    """A file with a question per line, or with JSON objects that have a `question`. `-` reads standard input."""
    json: bool = False
    """Write a JSON line per answer, for programs, in place of the streamed text."""
    seed: int = 0
    """Seed of the random draws at a temperature above 0."""
    attention: CacheBackend | None = None
    """Backend of attention over caches. Default: `pallas` on a GPU, `xla` elsewhere. `xla` runs on every device."""

    def __post_init__(self) -> None:
        check_integer("seed", self.seed)
        if self.condition.method == "rejection_sampling":
            raise UserError(
                "rejection_sampling draws many traces, and generate.py shows one: use evaluate.py or sweep.py"
            )
        if self.prompt is not None:
            check_text("the prompt", self.prompt)
            if self.prompts is not None:
                raise UserError("prompt and prompts are both given: give one of them")


def generate(config: GenerateConfig, out: TextIO) -> list[Completion]:
    """Load the model once and answer the questions; write each answer to `out`, and log a summary of each.

    A bad file of questions is refused before the model is loaded. At a terminal an error of one question does not end the others.
    """
    condition = config.condition
    questions = read_questions(config.prompts) if config.prompt is None else [config.prompt]
    source = resolve_source(config.model)
    chat = ChatFormat.of(
        load_tokenizer(source), condition.thinking_format, condition.system_prompt, condition.prompt_suffix
    )
    engine, _ = load_engine(
        source, condition.dtype, int8=condition.int8, attention=config.attention, num_rows=1, chat=chat
    )
    completions: list[Completion] = []
    for number, question in enumerate(questions, start=1):
        if config.prompts is not None and not config.json:
            between = "\n" if number > 1 else ""
            shown = for_stream(out, json.dumps(question, ensure_ascii=False))
            out.write(f"{between}=== question {number}: {shown} ===\n")
        try:
            completions.append(_answer(engine, chat, question, config, out))
        except UserError as error:
            if config.prompt is not None or config.prompts is not None:
                raise
            logger.error("%s", error)
    return completions


def _answer(engine: Engine, chat: ChatFormat, question: str, config: GenerateConfig, out: TextIO) -> Completion:
    condition = config.condition
    ticket = engine.submit(request_of(chat, question, condition, seed=config.seed))
    stream = TranscriptStream(chat, io.StringIO() if config.json else out)
    started = time.monotonic()
    try:
        while not (finished := engine.step(STEPS_PER_UPDATE)):
            stream.show(engine.progress()[ticket])
        ((_, (completion,)),) = finished
        seconds = time.monotonic() - started
        stream.show(completion, whole=True)
    except BaseException:
        stream.close(" (interrupted)")
        raise
    stream.close()
    if config.json:
        thinking, answer_text = chat.split_completion(completion.tokens, completion.num_thinking)
        row = dict(
            question=question, thinking=thinking, answer_text=answer_text, num_thinking_tokens=completion.num_thinking,
            num_ignored=completion.num_ignored, num_answer_tokens=completion.num_answer,
            finish_reason=completion.finish_reason,
        )  # fmt: skip
        out.write(json.dumps(row) + "\n")
        out.flush()
    cut = " (all that --max-answer-tokens allows)" if completion.finish_reason == "length" else ""
    thought = ""
    if chat.thinking.thinks:
        tokens = counted(completion.num_thinking, "thinking token")
        ended = "the budget" if completion.num_thinking == condition.max_thinking_tokens else "the model"
        ignored = counted(completion.num_ignored, "stop")
        thought = f"{tokens} (budget {condition.max_thinking_tokens}), ended by {ended}; {ignored} ignored; "
    answered = counted(completion.num_answer, "answer token")
    logger.info("%s%s%s; %.1f s, compilation included", thought, answered, cut, seconds)
    return completion


class TranscriptStream:
    """Writes a growing completion as text, with a heading above the thinking and one above the answer.

    On a terminal injected text has a colour. Elsewhere, or if NO_COLOR is set, it stands in [[double brackets]].
    """

    def __init__(self, chat: ChatFormat, out: TextIO):
        self.chat, self.out = chat, out
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
            text = self.chat.decode(ids, skip_special_tokens=kind == "answer")
            # An injected string is marked as a whole, so it waits for the token after it.
            if end == size and not whole and (kind in ("injected", "delimiter") or text.endswith("\ufffd")):
                break
            self._write(kind, text)
            self.shown = end
        if whole and not self.answered:
            note = "(blank answer)" if completion.num_answer else "(no answer)"
            self._write("answer", f" {note}" if self.heading == "answer" and self.last else note)
        self.out.flush()

    def close(self, note: str = "") -> None:
        """End the text, with a note of ours behind it."""
        if self.heading:
            self.out.write((RESET if self.color else "") + note + "\n")
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
            text = text.replace(self.chat.thinking.answer, "", 1).lstrip("\n")
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
