"""`generate.py`: the streamed text with its parts marked, and what is refused."""

import dataclasses
import io
import itertools
import json

import pytest

from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition
from s1jax.decode import generate
from s1jax.decode.request import Completion
from tests.support.tokenizers import byte_tokenizer, qwq_tokenizer

DELIMITER, BUDGET_DELIMITER = "<|im_start|>answer", "\n<|im_start|>answer\nFinal Answer:"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def transcript(out, thinking, delimiter, answer, num_answer=0, tokenizer=None):
    """What `out` holds after this completion was streamed, token by token. `num_answer` is the number of answer tokens."""
    tokenizer = tokenizer or byte_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (thinking, delimiter, answer)]
    tokens, forced = (
        tuple(itertools.chain(*ids)),
        (False,) * len(ids[0]) + (True,) * len(ids[1]) + (False,) * len(ids[2]),
    )
    stream = generate.TranscriptStream(ChatFormat.of(tokenizer), out)
    for n in range(1, len(tokens) + 1):
        completion = Completion(tokens[:n], forced[:n], min(n, len(ids[0])), 0, num_answer, "unfinished")
        stream.show(completion, whole=n == len(tokens))
    stream.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("thinking", "delimiter", "answer", "text"),
    [
        ("hm", BUDGET_DELIMITER, " 6<|im_end|>", "--- thinking ---\nhm\n--- answer ---\n[[Final Answer:]] 6\n"),
        ("hm\n\nso\n", DELIMITER, "\n6\n\n7", "--- thinking ---\nhm\n\nso\n--- answer ---\n6\n\n7\n"),
        ("", BUDGET_DELIMITER, "<|im_end|>", "--- answer ---\n[[Final Answer:]] (no answer)\n"),
        ("hm", DELIMITER, "\n<|im_end|>", "--- thinking ---\nhm\n--- answer ---\n(no answer)\n"),
    ],
)
def test_off_a_terminal_forced_text_is_in_brackets_and_nothing_is_blank(thinking, delimiter, answer, text):
    assert transcript(io.StringIO(), thinking, delimiter, answer) == text


@pytest.mark.parametrize(
    ("delimiter", "answer", "shown"),
    [
        ("</think>", "\n\n6", "6"),
        ("\n</think>\n\nFinal Answer:", " 6", "[[Final Answer:]] 6"),
        ("\nTime is up.\n</think>\n\n", "6", "[[Time is up.\n\n\n]]6"),
    ],
)
def test_the_tags_of_another_format_are_not_shown(delimiter, answer, shown):
    text = transcript(io.StringIO(), "hm", delimiter, answer + "<|im_end|>", tokenizer=qwq_tokenizer())
    assert text == f"--- thinking ---\nhm\n--- answer ---\n{shown}\n"


def test_an_answer_of_tokens_without_text_is_called_blank():
    text = transcript(io.StringIO(), "hm", BUDGET_DELIMITER, " \n", num_answer=2)
    assert text == "--- thinking ---\nhm\n--- answer ---\n[[Final Answer:]] \n (blank answer)\n"


def test_an_interrupted_stream_says_so_and_leaves_no_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for out, end in ((io.StringIO(), "so (interrupted)\n"), (Terminal(), f"so{generate.RESET} (interrupted)\n")):
        tokenizer = byte_tokenizer()
        ids = tokenizer("so", add_special_tokens=False)["input_ids"]
        stream = generate.TranscriptStream(ChatFormat.of(tokenizer), out)
        stream.show(Completion(tuple(ids), (False,) * 2, 2, 0, 0, "unfinished"))
        stream.close(" (interrupted)")
        assert out.getvalue().endswith(end)


def test_a_terminal_has_colours_without_empty_runs_unless_they_are_unwanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    r, bold, dim, green = generate.RESET, generate.BOLD, generate.DIM, generate.GREEN
    natural = transcript(Terminal(), "h", DELIMITER, "\n6")
    assert natural == f"{r}{bold}--- thinking ---{r}\n{r}{dim}h\n{r}{bold}--- answer ---{r}\n{r}6{r}\n"
    assert f"\n{r}{green}Final Answer:{r} " in transcript(Terminal(), "h", BUDGET_DELIMITER, " 6")
    monkeypatch.setenv("NO_COLOR", "1")
    assert transcript(Terminal(), "h", BUDGET_DELIMITER, " 6").endswith("\n[[Final Answer:]] 6\n")


def test_a_model_cannot_command_a_terminal_and_a_pipe_gets_its_text(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    hostile = "a\x1b]0;owned\x07\tb\u202e\x9b2J"
    shown = transcript(Terminal(), hostile, DELIMITER, "\n6\r7")
    assert shown == "--- thinking ---\na\\x1b]0;owned\\x07\tb\\u202e\\x9b2J\n--- answer ---\n6\\r7\n"
    assert hostile in transcript(io.StringIO(), hostile, DELIMITER, "\n6\r7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_ignore=2**31), "num_ignore is 2147483648; it must be from 0 to 2147483647"),
        (dict(top_k=100_000_000_000), "top_k is 100000000000; it must be from 0 to 2147483647"),
        (dict(prompt="a\udce9"), "the prompt is not valid Unicode: character 2 is a byte that is not UTF-8"),
        (dict(ignore_text="\ud800"), "ignore_text is not valid Unicode: character 1 is a lone surrogate"),
        (dict(temperature=float("nan")), "temperature is nan; it must be finite and not negative"),
    ],
)
def test_a_bad_setting_is_refused_before_the_model_is_loaded(changes, message, monkeypatch):
    monkeypatch.setattr(generate, "load_engine", None)
    with pytest.raises(ValueError, match=message):
        prompt = changes.pop("prompt", "1 + 1?")
        condition = Condition(**dict(max_thinking_tokens=8) | changes)
        generate.generate(generate.GenerateConfig("none", prompt, condition), io.StringIO())


@pytest.mark.integration
def test_generate_streams_the_completions_text_with_its_parts_marked(tiny_model):
    out = io.StringIO()
    config = generate.GenerateConfig(
        tiny_model,
        "1 + 1?",
        Condition(60, 60, ignore_text="Wait", max_answer_tokens=8, dtype="float32", temperature=1.0),
    )
    (completion,) = generate.generate(config, out)
    text = out.getvalue()
    assert completion.num_thinking == 60 and completion.num_ignored > 0
    assert text.startswith("--- thinking ---\n") and text.count("--- answer ---\n[[Final Answer:]]") == 1
    assert text.count("[[Wait]]") == completion.num_ignored
    assert text.index("--- answer ---") > text.rindex("[[Wait]]")


@pytest.mark.integration
def test_questions_of_a_file_are_answered_by_one_model_and_can_be_told_apart(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "q").write_text('1 + 1?\n\n{"question": "say\\n\\u001b[2J"}\n')
    loaded = []
    load = generate.load_engine
    monkeypatch.setattr(generate, "load_engine", lambda *a, **k: loaded.append(a) or load(*a, **k))
    condition = Condition(4, max_answer_tokens=2, dtype="float32")
    text, lines = io.StringIO(), io.StringIO()
    config = generate.GenerateConfig(tiny_model, condition=condition, prompts=str(tmp_path / "q"))
    completions = generate.generate(config, text)
    generate.generate(dataclasses.replace(config, json=True), lines)
    assert len(loaded) == 2 and len(completions) == 2
    headings = [line for line in text.getvalue().splitlines() if line.startswith("=== ")]
    assert headings == ['=== question 1: "1 + 1?" ===', r'=== question 2: "say\n\u001b[2J" ===']
    rows = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [row["question"] for row in rows] == ["1 + 1?", "say\n\x1b[2J"]
    assert [row["num_thinking_tokens"] for row in rows] == [c.num_thinking for c in completions]


def test_streaming_a_character_waits_for_all_its_bytes():
    tokenizer = byte_tokenizer()
    ids = tokenizer("é→🙂", add_special_tokens=False)["input_ids"]
    out = io.StringIO()
    stream = generate.TranscriptStream(ChatFormat.of(tokenizer), out)
    for n in range(1, len(ids) + 1):
        stream.show(Completion(tuple(ids[:n]), (False,) * n, n, 0, 0, "unfinished"))
    assert out.getvalue() == "--- thinking ---\né→🙂"
