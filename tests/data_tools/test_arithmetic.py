"""`arithmetic.py`: generated problems and their traces, and the pool with its defects."""

import random
import re
import sys
from collections import Counter

import numpy as np
import pytest

from data_tools.quickstart import arithmetic
from data_tools.quickstart.arithmetic import (
    DEFECTS,
    LABELS,
    MAX_STEPS,
    STORIES,
    make_heldout,
    make_pool,
    make_problem,
)
from tests.support.quickstart import compute, rows_of

LINE = re.compile(r"(?:(Wait)|(\w+) ([A-H]): ([^,]+)), (\d+)([-+*/])(\d+)=(\d+)(, yes|, not (\d+))?")
ANSWER = re.compile(r"Answer: (\d+)")


def read_line(line):
    match = LINE.fullmatch(line)
    assert match, line
    return match


def lines_of(row):
    """The sums of a trace, whose answer lines all give the answer and stand behind the last step."""
    lines = row["thinking"].split("\n")
    first = next(i for i, line in enumerate(lines) if ANSWER.fullmatch(line))
    assert lines[-1] == f"Answer: {row['reference']}" and set(lines[first::2]) == {lines[-1]}
    assert all(line.startswith("Wait, ") for line in lines[first + 1 :: 2])
    return [read_line(line) for line in lines if not ANSWER.fullmatch(line)]


def test_the_numbers_of_every_problem_stay_within_0_and_99_and_follow_from_its_words():
    rng = random.Random(1)
    for i in range(400):
        problem = make_problem(rng, i % MAX_STEPS + 1)
        value = int(re.search(r"\d+", problem.start).group())
        for step in problem.steps:
            assert step.before == value and 0 <= step.after <= 99
            assert step.words in {w.format(x=step.operand) for w in problem.story.changes[step.operation]}
            value = compute(step.before, step.operation, step.operand)
            assert step.after == value
        assert problem.answer == value


def test_every_story_has_words_of_its_own_for_every_operation():
    assert len({story.name for story in STORIES}) == len({story.unit for story in STORIES}) == 8
    for story in STORIES:
        assert set(story.changes) == set("+-*/")
        assert sum(len(words) for words in story.changes.values()) == len(set().union(*story.changes.values()))


def test_a_trace_follows_the_question_and_ends_in_the_answer():
    for row in rows_of(400):
        lines = lines_of(row)
        named = [f"{match[2]} {match[3]}: {match[4]}." for match in lines if not match[1]]
        assert all(step in row["question"] for step in named)
        labels = [match[3] for match in lines if match[3]]
        assert labels == list(LABELS[: int(row["domain"].split("/")[1])])
        assert labels[-1] == row["question"].rstrip("?")[-1]
        assert lines[-1][8] == row["reference"]
        assert row["answer"] == f"Final Answer: {row['reference']}"


def test_a_wrong_sum_stands_only_where_a_wait_mends_it():
    slips = 0
    for row in rows_of(4000, seed=2):
        lines = lines_of(row)
        for i, match in enumerate(lines):
            assert 0 <= int(match[8]) <= 99
            right = compute(match[5], match[6], match[7]) == int(match[8])
            if match[1]:
                assert right
                assert match[9] == ", yes" or match[10] != match[8]
            elif not right:
                slips += 1
                mend = lines[i + 1]
                assert mend[1] and mend[10] == match[8] and mend[5] == match[5]
    assert slips > 100


def test_about_one_row_in_two_checks_itself_and_most_checks_agree():
    rows = rows_of(800, seed=3)
    assert 0.4 < np.mean(["Wait" in row["thinking"] for row in rows]) < 0.8
    agreed = sum(row["thinking"].count(", yes") for row in rows)
    mended = sum(row["thinking"].count(", not ") for row in rows)
    assert 0.015 < mended / (agreed + mended) < 0.1


def test_the_pool_is_a_function_of_its_seed():
    assert make_pool(300, 0, make_heldout(40, 0)) == make_pool(300, 0, make_heldout(40, 0))
    assert make_pool(300, 0, make_heldout(40, 0)) != make_pool(300, 1, make_heldout(40, 0))


def test_the_pool_holds_copies_defects_trivial_and_held_out_problems():
    heldout = make_heldout(80, 0)
    pool = make_pool(2000, 0, heldout)
    assert len(pool) == 2000
    questions = Counter(row["question"] for row in pool)
    assert sum(count - 1 for question, count in questions.items() if question) > 150
    assert sum(question in questions for question in [problem.question for problem in heldout]) >= 40
    assert sum(row["domain"].endswith("/1") for row in pool) > 100
    assert sum("reference" not in row for row in pool) >= 2000 // 10 // len(DEFECTS)


def test_heldout_problems_differ_and_come_in_all_lengths_equally():
    heldout = make_heldout(120, 5)
    assert len({problem.question for problem in heldout}) == 120
    assert set(Counter(len(problem.steps) for problem in heldout).values()) == {120 // MAX_STEPS}


def test_files_with_other_rows_are_not_replaced_and_those_of_the_same_command_are(tmp_path, monkeypatch):
    def run(*options):
        monkeypatch.setattr(sys, "argv", ["arithmetic", str(tmp_path), "--num-heldout", "6", *options])
        arithmetic.main()
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    first = run("--num", "20")
    assert run("--num", "20") == first
    with pytest.raises(ValueError, match=f"{tmp_path}/pool.jsonl holds other rows"):
        run("--num", "21")
    (tmp_path / "heldout.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=f"{tmp_path}/heldout.jsonl holds other rows"):
        run("--num", "20")
    assert (tmp_path / "pool.jsonl").read_text() == first["pool.jsonl"]
