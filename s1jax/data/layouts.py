"""The layouts of reasoning data: one row's columns -> question, trace and answer.

A row has the first of these layouts that fits:

1. columns of their own for trace and answer: those of this project, of s1K-1.1 or of s1K
2. a list of turns, `messages` (role, content) or `conversations` (from, value): one question, one answer, and perhaps a system prompt
3. a question and a completion: `prompt` and `completion`, `instruction` and `output`, `question` and `answer`, and so on

In 2 and 3 the trace stands before the answer, between `<think>` and `</think>` (the first tag may be missing) or between
`<|begin_of_thought|>` and `<|end_of_thought|>`. In 2 it may also be a field of the answer's turn, such as `reasoning_content`.
Tags around a trace or an answer are taken off.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from s1jax.data.columns import (
    SYSTEM_COLUMNS,
    check_whole_question,
    columns_of,
    filled_text_of,
    first_column,
    is_empty,
    is_missing,
    text_of,
)
from s1jax.runtime.errors import UserError


class Parts(NamedTuple):
    """The texts of a training example; none is empty."""

    question: str
    thinking: str
    answer: str
    has_system_prompt: bool = False


# Pairs of columns (trace, answer): this project's, s1K-1.1's, s1K's, Gemini's of s1K-1.1, and names of other data.
_TRACE_COLUMNS = (
    ("thinking", "answer"),
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("thinking_trajectories", "attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
    ("reasoning_content", "answer"),
    ("reasoning", "answer"),
)
_QUESTION_COLUMNS = ("question", "problem")
_TURN_COLUMNS = ("messages", "conversations", "conversation")
# Pairs of columns (question, trace and answer in one text).
_COMPLETION_COLUMNS = tuple(
    (question, completion)
    for question in ("prompt", "instruction", *_QUESTION_COLUMNS)
    for completion in ("completion", "response", "output", "answer", "solution")
)
_PAIRS = (*_TRACE_COLUMNS, *_COMPLETION_COLUMNS)
COLUMNS = {name for pair in _PAIRS for name in pair} | {*_QUESTION_COLUMNS, *_TURN_COLUMNS, *SYSTEM_COLUMNS, "input"}
"""All columns that a layout may read."""
_SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}
_SPEAKERS |= {"system": "system", "developer": "system"}
_TRACE_FIELDS = ("reasoning_content", "reasoning", "thinking")
_FIELDS_BESIDE_TEXT = ("tool_calls", "function_call", "images", "audio")

_TAG = re.compile(
    r"<(/?)(think|thinking|thought|reasoning)(?: [^<>]{0,80})?>|<\|(begin|end)_of_(thought)\|>", re.IGNORECASE
)
_TAGGED_ANSWER = re.compile(
    r"\s*(?:<answer>(.*)</answer>|<\|begin_of_solution\|>(.*)<\|end_of_solution\|>)\s*", re.IGNORECASE | re.DOTALL
)
_ANSWER_TAG = re.compile(r"</?answer>|<\|(?:begin|end)_of_solution\|>", re.IGNORECASE)


def find_parts(row: dict[str, Any]) -> Parts:
    """Return the parts of a training row.

    Raises UserError, with the reason, if the parts are not clear, if one is empty, or if another column belongs to the question.
    """
    turns = first_column(row, _TURN_COLUMNS)
    completion = next((pair for pair in _COMPLETION_COLUMNS if _holds_completion(row, *pair)), None)
    pairs = [pair for pair in _TRACE_COLUMNS if all(name in row for name in pair)]
    filled = [pair for pair in pairs if not is_missing(row[pair[0]])]
    # An empty trace is only a fault if no other layout fits.
    trace = next(iter(filled or (pairs if turns is completion is None else [])), None)
    used: tuple[str, ...] = ()
    if trace is not None:
        parts = _from_columns(row, *trace)
    elif turns is not None:
        parts = _from_turns(turns, row[turns])
    elif completion is not None and isinstance(row[completion[1]], list):
        parts = _from_turns(completion[0], row[completion[0]] + row[completion[1]])
    elif completion is not None:
        used = ("input",)  # Alpaca's name for what an instruction is about
        question = [text_of(name, row.get(name)) for name in (completion[0], *used)]
        parts = Parts("\n\n".join(filter(str.strip, question)), *_trace_and_answer(completion[1], row[completion[1]]))
    else:
        raise UserError(f"no trace is found in the columns {columns_of(row)} (docs/usage.md lists the layouts)")
    check_whole_question(row, used)
    return parts._replace(has_system_prompt=parts.has_system_prompt or first_column(row, SYSTEM_COLUMNS) is not None)


def _holds_completion(row: dict[str, Any], question: str, completion: str) -> bool:
    """Return whether two columns are a question and a text with a trace in it, or two lists of turns."""
    asked, text = row.get(question), row.get(completion)
    if isinstance(text, str):
        return not is_empty(asked) and _TAG.search(text) is not None
    return isinstance(asked, list) and isinstance(text, list)


def _from_columns(row: dict[str, Any], trace: str, answer: str) -> Parts:
    name = first_column(row, _QUESTION_COLUMNS) or "question"
    question = filled_text_of(name, row.get(name))
    thinking = _untagged_trace(trace, filled_text_of(trace, row[trace], lines=True))
    return Parts(question, thinking, _untagged_answer(answer, filled_text_of(answer, row[answer], number=True)))


def _from_turns(name: str, turns: Any) -> Parts:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{name} is not a list of turns")
    speakers = [_SPEAKERS.get(str(turn.get("role") or turn.get("from")).lower(), "other") for turn in turns]
    if speakers not in (["user", "assistant"], ["system", "user", "assistant"]):
        counts = (
            ", ".join(f"{speakers.count(speaker)} x {speaker}" for speaker in dict.fromkeys(speakers)) or "no turns"
        )
        raise UserError(f"{name} is not one question and its answer: it has {counts}")
    if beside := [field for turn in turns for field in _FIELDS_BESIDE_TEXT if not is_empty(turn.get(field))]:
        raise UserError(f"{name} has {beside[0]}, which is not text")
    asked, answered = turns[-2:]
    question = filled_text_of(f"the question in {name}", _content(name, asked))
    text = text_of(f"the answer in {name}", _content(name, answered))
    if field := first_column(answered, _TRACE_FIELDS):
        thinking = _untagged_trace(field, filled_text_of(field, answered[field]))
        answer = _untagged_answer(f"the answer in {name}", filled_text_of(f"the answer in {name}", text))
    else:
        thinking, answer = _trace_and_answer(name, text)
    return Parts(question, thinking, answer, speakers[0] == "system" and not is_empty(_content(name, turns[0])))


def _content(name: str, turn: dict[str, Any]) -> Any:
    """Return the content of a turn. A list of parts is joined if all of them are text."""
    content = turn.get(first_column(turn, ("content", "value")) or "content")
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise UserError(f"{name} has a part that is not text")
    return "".join(text_of(f"a part in {name}", part.get("text")) for part in content)


def _trace_and_answer(name: str, text: str) -> tuple[str, str]:
    thinking, answer = _split(name, text)
    answer = _untagged_answer(name, filled_text_of(f"the answer in {name}", answer))
    return filled_text_of(f"the trace in {name}", thinking), answer


def _split(name: str, text: str) -> tuple[str, str]:
    """Return what stands in the tags of a trace, and what follows."""
    tags = list(_TAG.finditer(text))
    closes = [_closes(tag) for tag in tags]
    if True not in closes:
        raise UserError(f"{name} has a trace that is not closed" if tags else f"{name} has no trace before the answer")
    if closes not in ([True], [False, True]) or len({(tag[2] or tag[4]).lower() for tag in tags}) > 1:
        raise UserError(f"{name} has several traces, or tags that do not match")
    first, last = tags[0], tags[-1]
    if first is not last and text[: first.start()].strip():
        raise UserError(f"{name} has text before its trace")
    return text[0 if first is last else first.end() : last.start()].strip(), text[last.end() :].strip()


def _untagged_trace(name: str, trace: str) -> str:
    """Return a trace without the tags at its ends. A tag within it is text: the trace may speak of tags."""
    tags = list(_TAG.finditer(trace))
    begins = bool(tags) and not _closes(tags[0]) and not trace[: tags[0].start()].strip()
    ends = bool(tags) and _closes(tags[-1]) and not trace[tags[-1].end() :].strip()
    if begins and not ends:
        after = "text after its trace" if any(map(_closes, tags)) else "a trace that is not closed"
        raise UserError(f"{name} has {after}")
    if not ends:
        return trace
    return filled_text_of(name, trace[tags[0].end() if begins else 0 : tags[-1].start()].strip())


def _closes(tag: re.Match[str]) -> bool:
    return tag[1] == "/" or (tag[3] or "").lower() == "end"


def _untagged_answer(name: str, answer: str) -> str:
    if match := _TAGGED_ANSWER.fullmatch(answer):
        answer = filled_text_of(f"the answer in {name}", (match[1] or match[2] or "").strip())
    if tag := _ANSWER_TAG.search(answer) or _TAG.search(answer):
        raise UserError(f"{name} has a tag that does not match: {tag[0]}")
    return answer
