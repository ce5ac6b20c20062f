"""Questions for `generate`: from a file, from standard input, or asked for at the terminal."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from s1jax.data.chat import check_text
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError

COLUMNS = ("question", "problem", "prompt")
"""Names of the question in a JSON object. The first one that holds text is used."""


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
        question = next((row[column] for column in COLUMNS if isinstance(row.get(column), str)), "")
        if not question.strip():
            raise UserError(f"{where}: a JSON object needs text in {' or '.join(COLUMNS)}")
        check_text(where, question)
        yield question
