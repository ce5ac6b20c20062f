"""`attempts.py`: which attempt at a problem becomes the trace of its row."""

import pytest

from data_tools.curation.attempts import Attempt, attempt_of_reply, attempt_of_sample, choose
from tests.support.samples import sample


def row(**changes):
    columns = dict(thinking="2 + 2 is 4.", num_thinking_tokens=6, max_thinking_tokens=9, answer_text="Answer: 4")
    return sample(**columns | changes)


def reply(text, reasoning="", finish_reason="stop"):
    return {"reply": {"text": text, "reasoning": reasoning, "finish_reason": finish_reason}}


def test_the_first_attempt_that_agrees_is_chosen(grader):
    attempts = [Attempt("t0", "Answer: 5", True), Attempt("t1", r"\boxed{4.0}", True), Attempt("t2", "Answer: 4", True)]
    for order, expected in ((attempts, 1), (attempts[::-1], 2)):
        chosen, reason, detail = choose(order, "4", grader)
        assert chosen == attempts[expected] and reason is detail is None


@pytest.mark.parametrize(
    ("attempts", "reason", "detail"),
    [
        ([("Answer: 5", True)] * 4, "no sample agrees with the reference", "0 of 4"),
        ([("Answer: 5", True), ("Answer: 4", False)], "no sample agrees with the reference",
         "0 of 1, 1 more did not end in time"),
        ([("Answer: 4", False)] * 3, "no sample ends in time", "0 of 3"),
    ],
)  # fmt: skip
def test_without_an_attempt_that_agrees_and_ends_there_is_a_reason_with_counts(attempts, reason, detail, grader):
    assert choose([Attempt("t", *attempt) for attempt in attempts], "4", grader) == (None, reason, detail)


@pytest.mark.parametrize(
    ("reference", "answer", "agrees"),
    [
        (r"2 + 2 = 4, so it is $\boxed{4}$.", "Answer: 4", True),
        ("We add.\n#### 1,000", "Answer: 1000", True),
        ("It is one half.\nAdding both parts we find 1/2.", "Answer: 0.5", True),
        ("1.5", "Answer: 5", False),
    ],
)
def test_attempts_agree_with_a_reference_as_the_quality_stage_says(reference, answer, agrees, grader):
    chosen, _, _ = choose([Attempt("t", answer, True)], reference, grader)
    assert (chosen is not None) == agrees


@pytest.mark.parametrize(
    ("changes", "is_whole"),
    [
        ({}, True),
        ({"finish_reason": "length"}, False),
        ({"num_thinking_tokens": 9}, False),  # the budget ended the thinking
        ({"thinking": " \n"}, False),
        ({"answer_text": " \n"}, False),
    ],
)
def test_a_sample_is_whole_if_the_model_ended_its_thinking_and_its_answer(changes, is_whole):
    attempt = attempt_of_sample(row(**changes))
    assert attempt.is_whole == is_whole and attempt.answer in ("Answer: 4", "")


def test_without_thinking_the_answer_is_the_trace_and_its_final_answer_is_the_answer(grader):
    text = "We add both.\nSo it is \\boxed{ 4 }"
    direct = row(thinking_format="none", thinking="", num_thinking_tokens=0, max_thinking_tokens=0, answer_text=text)
    for attempt in (attempt_of_sample(direct), attempt_of_reply(reply(text))):
        chosen, _, _ = choose([attempt], "4", grader)
        assert chosen == Attempt(text, "Final Answer: 4", True)
    assert not attempt_of_sample(direct | {"finish_reason": "length"}).is_whole


def test_a_reply_with_reasoning_has_trace_and_answer(grader):
    assert attempt_of_reply(reply("\\boxed{4}", "2 + 2\n")) == Attempt("2 + 2", "\\boxed{4}", True)
    assert not attempt_of_reply(reply("", "2 + 2", "length")).is_whole
    assert not attempt_of_reply(reply("", "", "length")).is_whole
    # An answer that is missing agrees with nothing, even if the reasoning names it.
    assert choose([attempt_of_reply(reply("", "2 + 2\nAnswer: 4"))], "4", grader)[0] is None


def test_unless_answers_are_verified_the_first_that_ends_is_kept(grader):
    cut, wrong, right = Attempt("a", "1", False), Attempt("b", "2", True), Attempt("c", "3", True)
    assert choose([cut, wrong, right], "3", grader, verify=False) == (wrong, None, None)
    assert choose([cut, wrong, right], "3", grader)[0] == right
    assert choose([cut], "3", grader, verify=False)[1] == "no sample ends in time"
    assert choose([Attempt("so 2.\nAnswer: 2", "", True)], "", grader, verify=False)[0].answer == "Final Answer: 2"
