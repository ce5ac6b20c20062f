"""`questions.py`: questions from files, standard input and the terminal."""

import io

import pytest

from s1jax.decode.questions import read_questions
from s1jax.runtime.errors import UserError


class StandardInput(io.TextIOWrapper):
    def __init__(self, text, is_terminal=False):
        super().__init__(io.BytesIO(text.encode()))
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


def test_a_line_is_a_question_or_a_json_object_with_one(tmp_path, monkeypatch):
    text = '\ufeffWhat is {"a"}?\r\n\n  \n{ "id": 3, "problem": "5"}\n7\n{x} or {y}?\n{"question": null, "prompt": "a\\nb"}'
    (tmp_path / "q.txt").write_bytes(text.encode())
    expected = ['What is {"a"}?', "5", "7", "{x} or {y}?", "a\nb"]
    assert list(read_questions(str(tmp_path / "q.txt"))) == expected
    monkeypatch.setattr("sys.stdin", StandardInput(text))
    assert list(read_questions("-")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no questions"),
        (b" \n\n", "holds no questions"),
        (b"1 + 1?\ncaf\xe9?", "line 2 is not UTF-8: .* at byte 4"),
        ("1 + 1?".encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
        (b"\x1f\x8b\x08\x00", "is gzip, not text"),
        (b'{"question": "1 + 1', "line 1 is not JSON: "),
        (b'{"text": "1 + 1?"}', "line 1: a JSON object needs text in question or problem or prompt"),
        (b'{"question": " "}', "line 1: a JSON object needs text"),
        (b'{"question": "a\\ud800"}', "line 1: question is not valid Unicode"),
        (b'{"question": 5}', "line 1: question is not text but a number"),
        (b'{"question": "what?", "context": "y"}', "line 1: column context would be left out"),
        (b'[\n  {"question": "1 + 1?"}\n]', "is one JSON value over several lines"),
        (b'{\n  "question": "1 + 1?"\n}', "is one JSON value over several lines"),
        (b'{"a":' * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_bad_file_is_one_error_that_names_the_line(tmp_path, content, message):
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_questions(str(tmp_path / "q"))


def test_a_terminal_is_asked_until_it_ends_and_nothing_else_is(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", StandardInput("one?\ntwo?\n", is_terminal=True))
    assert list(read_questions(None)) == ["one?", "two?"]
    assert capsys.readouterr().err == 3 * "question (Ctrl-D ends): " + "\n"
    monkeypatch.setattr("sys.stdin", StandardInput("one?\n"))
    with pytest.raises(UserError, match="no question: give --prompt, or --prompts FILE"):
        read_questions(None)
    with pytest.raises(UserError, match="nonesuch cannot be read: No such file"):
        read_questions("nonesuch")
