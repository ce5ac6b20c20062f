"""Questions: from a file, from standard input, or asked for at the terminal; and as requests to an engine."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from s1jax.data.chat import ChatFormat
from s1jax.data.columns import check_whole_question, filled_text_of, first_column
from s1jax.data.condition import Condition
from s1jax.decode.request import Request
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError

COLUMNS = ("question", "problem", "prompt")
"""Names of the question in a JSON object. The first one that holds something is used."""


def request_of(chat: ChatFormat, question: str, condition: Condition, **fields: Any) -> Request:
    """Return the request to think about a question, if the format has thinking, and answer it. `fields` are those of a `Request`.

    What a control method asks for (`condition.prompt`) stands behind the question, after a blank line.
    """
    return Request(
        prompt=tuple(chat.encode_prompt(question, condition.prompt)),
        condition=condition,
        ignore_ids=tuple(chat.encode_text(condition.ignore_text)),
        final_ids=tuple(chat.encode_final(condition.wrap_up)),
        thinks=chat.thinking.thinks,
        **fields,
    )


def read_questions(source: str | None) -> Iterator[str]:
    """Return the questions of a file, of standard input (`-`), or of a user at the terminal (None).

    A line that begins as a JSON object does is read as one, and any other line is a question. Blank lines are passed over. A file is read
    and checked now, all other lines as they come. Raises UserError, with the number of the line, for a bad line, and for a file without
    questions.
    """
    if source is None:
        if not sys.stdin.isatty():
            raise UserError("no question: give --prompt, or --prompts FILE (- for standard input)")
        return _questions(_asked_lines(), "the terminal")
    if source == "-":
        return _questions(sys.stdin.buffer, "standard input")
    try:
        content = Path(source).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}") from None
    jsonl.check_text_file(source, content[:512])
    if (
        content.lstrip()[:1] in (b"[", b"{")
        and not isinstance(jsonl.value_of(content), UserError)
        and b"\n" in content.strip()
    ):
        raise UserError(f"{source} is one JSON value over several lines: write one JSON object per line")
    if not (questions := list(_questions(content.splitlines(), source))):
        raise UserError(f"{source} holds no questions")
    return iter(questions)


def _asked_lines() -> Iterator[bytes]:
    while True:
        print("question (Ctrl-D ends): ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.buffer.readline()):
            print(file=sys.stderr)
            return
        yield line


def _questions(lines: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8: {error.reason} at byte {error.start + 1}") from None
        row = jsonl.value_of(line) if re.match(r'\{\s*"', text) else {"question": text}
        if isinstance(row, UserError):
            raise UserError(f"{where} is {row}")
        if not text:
            continue
        try:
            if (column := first_column(row, COLUMNS)) is None:
                raise UserError(f"a JSON object needs text in {' or '.join(COLUMNS)}")
            question = filled_text_of(column, row[column])
            check_whole_question(row, used=())
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        yield question
