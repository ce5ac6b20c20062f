"""The layouts of reasoning data: one row's columns -> question, trace and answer.

A row has the first of these layouts that fits:

1. columns of their own for trace and answer: those of this project, of s1K-1.1 or of s1K
2. a list of turns, `messages` (role, content) or `conversations` (from, value): one question, one answer, and perhaps a system prompt
3. a question and a completion: `prompt` and `completion`, `instruction` and `output`, `question` and `answer`, and so on

In 2 and 3 the trace stands before the answer, between `<think>` and `</think>` (the first tag may be missing) or between
`<|begin_of_thought|>` and `<|end_of_thought|>`. In 2 it may also be a field of the answer's turn, such as `reasoning_content`.
Tags around a trace or an answer are taken off.

A row of a pool (`find_pool_parts`) may lack trace and answer. Its layouts are these, and a question alone. In a row without a trace, what
looks like an answer is the reference.
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


class PoolParts(NamedTuple):
    """The texts of a row of a pool; all but the question may be empty."""

    question: str
    thinking: str
    answer: str
    reference: str
    """The known solution or answer."""
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
_QUESTION_COLUMNS = ("question", "problem", "Question", "Problem")
_TURN_COLUMNS = ("messages", "conversations", "conversation")
_PROMPT_COLUMNS = ("prompt", "instruction")
REFERENCE_COLUMNS = ("reference", "solution")
"""Names of the known solution in public data."""
# Where the known answer of a row of a pool is, if no column of the names above has it.
_ANSWER_COLUMNS = ("answer", "Answer", "gold", "final_answer", "expected_answer", "completion", "response", "output")
_COMPLETIONS = ("completion", "response", "output", "answer", "solution")
# Pairs of columns (question, trace and answer in one text).
_COMPLETION_COLUMNS = tuple(
    (question, completion) for question in (*_PROMPT_COLUMNS, *_QUESTION_COLUMNS) for completion in _COMPLETIONS
)
_PAIRS = (*_TRACE_COLUMNS, *_COMPLETION_COLUMNS)
COLUMNS = {name for pair in _PAIRS for name in pair} | {*_QUESTION_COLUMNS, *_TURN_COLUMNS, *SYSTEM_COLUMNS, "input"}
"""All columns that the layout of a training row may read."""
POOL_COLUMNS = {*COLUMNS, *REFERENCE_COLUMNS, *_ANSWER_COLUMNS}
"""All columns that the layout of a row of a pool may read."""
REPLACED = {
    "question": (*_QUESTION_COLUMNS, *_PROMPT_COLUMNS, *_TURN_COLUMNS),
    "thinking": tuple(trace for trace, _ in _TRACE_COLUMNS),
    "reference": REFERENCE_COLUMNS,
}
"""The columns that a column chosen by the user replaces, for each role."""
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
    pairs = [pair for pair in _TRACE_COLUMNS if all(name in row for name in pair)]
    filled = [pair for pair in pairs if not is_missing(row[pair[0]])]
    completion = None if filled else _completion_of(row)
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
        used = ("input",)
        parts = Parts(_with_input(row, completion[0]), *_trace_and_answer(completion[1], row[completion[1]]))
    else:
        raise UserError(f"no trace is found in the columns {columns_of(row)} (docs/usage.md lists the layouts)")
    check_whole_question(row, used)
    return parts._replace(has_system_prompt=parts.has_system_prompt or first_column(row, SYSTEM_COLUMNS) is not None)


def find_pool_parts(row: dict[str, Any]) -> PoolParts:
    """Return the parts of a row of a pool.

    Raises UserError, with the reason, if there is no question, if a trace is not clear, if a text is not text, or if another column belongs
    to the question.
    """
    row = {name: value for name, value in row.items() if name not in REPLACED["thinking"] or not is_empty(value)}
    if _has_trace(row):
        parts = find_parts(row)
        # A solution that holds the trace is no reference.
        name = first_column(row, REFERENCE_COLUMNS)
        is_trace = name is not None and isinstance(row[name], str) and _TAG.search(row[name]) is not None
        reference = "" if name is None or is_trace else text_of(name, row[name], number=True)
        return PoolParts(*parts[:3], reference, parts.has_system_prompt)
    asked = first_column(row, _QUESTION_COLUMNS)
    name, turns, used = _turns_of(row)
    known = first_column(row, (column for column in (*REFERENCE_COLUMNS, *_ANSWER_COLUMNS) if column not in used))
    reference = "" if known is None else text_of(known, row[known], number=True)
    has_system_prompt = first_column(row, SYSTEM_COLUMNS) is not None
    if turns is not None and (asked is None or known is None):
        question, answered, has_system = _read_turns(name, turns, ("user",), ("system", "user"))
        if answered:
            reference = reference or text_of(f"the answer in {name}", _content(name, answered))
        has_system_prompt |= has_system
    elif asked is None and (prompt := first_column(row, _PROMPT_COLUMNS)):
        used = ("input",)
        question = _with_input(row, prompt)
    else:
        asked = asked or next((name for name in (*_QUESTION_COLUMNS, *_PROMPT_COLUMNS) if name in row), None)
        if asked is None:
            raise UserError(f"no question is found: the columns are {columns_of(row)}")
        question = filled_text_of(asked, row[asked])
    trace = first_column(row, REPLACED["thinking"])
    thinking = "" if trace is None else _untagged_trace(trace, filled_text_of(trace, row[trace], lines=True))
    check_whole_question(row, used)
    return PoolParts(question, thinking, "", reference, has_system_prompt)


def _has_trace(row: dict[str, Any]) -> bool:
    """Return whether a row of a pool has a trace and an answer to it, in any layout."""
    if any(not is_empty(row.get(trace)) and not is_empty(row.get(answer)) for trace, answer in _TRACE_COLUMNS):
        return True
    name, turns, _ = _turns_of(row)
    if turns is None:
        return _completion_of(row) is not None
    answered = turns[-1] if isinstance(turns, list) and turns else None
    if not isinstance(answered, dict):
        return False
    content = _content(name, answered)
    is_tagged = isinstance(content, str) and _TAG.search(content) is not None
    return is_tagged or first_column(answered, _TRACE_FIELDS) is not None


def _turns_of(row: dict[str, Any]) -> tuple[str, Any, tuple[str, ...]]:
    """Return the name of a row's list of turns, the turns (None if there are none), and the columns that hold them."""
    if name := first_column(row, _TURN_COLUMNS):
        return name, row[name], (name,)
    prompt = next((name for name in _PROMPT_COLUMNS if isinstance(row.get(name), list)), None)
    if prompt is None:
        return "", None, ()
    completion = next((name for name in _COMPLETIONS if isinstance(row.get(name), list)), None)
    return prompt, row[prompt] + (row[completion] if completion else []), (prompt, *filter(None, [completion]))


def _completion_of(row: dict[str, Any]) -> tuple[str, str] | None:
    """Return the columns of a row's question and completion, None if it has none."""
    return next((pair for pair in _COMPLETION_COLUMNS if _holds_completion(row, *pair)), None)


def _holds_completion(row: dict[str, Any], question: str, completion: str) -> bool:
    """Return whether two columns are a question and a text with a trace in it, or two lists of turns."""
    asked, text = row.get(question), row.get(completion)
    if isinstance(text, str):
        return not is_empty(asked) and _TAG.search(text) is not None
    return isinstance(asked, list) and isinstance(text, list)


def _with_input(row: dict[str, Any], name: str) -> str:
    """Return the text of a prompt, and below it that of `input`, Alpaca's name for what an instruction is about."""
    return "\n\n".join(filter(str.strip, (text_of(column, row.get(column)) for column in (name, "input"))))


def _from_columns(row: dict[str, Any], trace: str, answer: str) -> Parts:
    name = first_column(row, _QUESTION_COLUMNS) or "question"
    question = filled_text_of(name, row.get(name))
    thinking = _untagged_trace(trace, filled_text_of(trace, row[trace], lines=True))
    return Parts(question, thinking, _untagged_answer(answer, filled_text_of(answer, row[answer], number=True)))


def _from_turns(name: str, turns: Any) -> Parts:
    question, answered, has_system_prompt = _read_turns(name, turns)
    text = text_of(f"the answer in {name}", _content(name, answered))
    if field := first_column(answered, _TRACE_FIELDS):
        thinking = _untagged_trace(field, filled_text_of(field, answered[field]))
        answer = _untagged_answer(f"the answer in {name}", filled_text_of(f"the answer in {name}", text))
    else:
        thinking, answer = _trace_and_answer(name, text)
    return Parts(question, thinking, answer, has_system_prompt)


def _read_turns(name: str, turns: Any, *others: tuple[str, ...]) -> tuple[str, dict[str, Any], bool]:
    """Return the question of a list of turns, the turn that answers it, and whether there is a system prompt.

    `others` are further orders of speakers that are allowed. If no turn answers the question, the returned turn is empty.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{name} is not a list of turns")
    speakers = [_SPEAKERS.get(str(turn.get("role") or turn.get("from")).lower(), "other") for turn in turns]
    if tuple(speakers) not in (("user", "assistant"), ("system", "user", "assistant"), *others):
        counts = (
            ", ".join(f"{speakers.count(speaker)} x {speaker}" for speaker in dict.fromkeys(speakers)) or "no turns"
        )
        raise UserError(f"{name} is not one question and its answer: it has {counts}")
    if beside := [field for turn in turns for field in _FIELDS_BESIDE_TEXT if not is_empty(turn.get(field))]:
        raise UserError(f"{name} has {beside[0]}, which is not text")
    question = filled_text_of(f"the question in {name}", _content(name, turns[speakers.index("user")]))
    answered = turns[-1] if speakers[-1] == "assistant" else {}
    return question, answered, speakers[0] == "system" and not is_empty(_content(name, turns[0]))


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
