"""`quality.py`: faults of a row's texts, whatever the spelling of its answer."""

import random

import pytest

from data_tools.curation.quality import QualityConfig, has_torn_bold, quality_reason, stage
from data_tools.quickstart.arithmetic import DEFECTS
from s1jax.data.rows import read_rows
from s1jax.runtime import jsonl
from tests.support.curation import pool_of, verdicts_of
from tests.support.quickstart import rows_of
from tests.support.training import ROW

REASONS = dict(
    no_trace="thinking is empty",
    no_question="question is empty",
    no_reference="no reference to grade against",
    wrong_answer="the answer disagrees with the reference",
    cut_trace="the trace does not reach the answer",
    image="refers to an image",
    torn_bold="torn bold markup",
)


def fault_of(row, grader):
    return quality_reason(row, QualityConfig(), grader)[0]


@pytest.mark.parametrize("name", DEFECTS)
def test_every_kind_of_defect_is_found_and_named(name, tmp_path, grader):
    rng = random.Random(7)
    good = rows_of(2)
    spoilt = [DEFECTS[name](row, rng) for row in rows_of(30, seed=8, num_steps=5)]
    jsonl.write(tmp_path / "pool.jsonl", good + spoilt)
    rows, rejects = read_rows(str(tmp_path / "pool.jsonl"))
    kept = [row for row in rows if fault_of(row, grader) is None]
    assert [row["id"] for row in kept[:2]] == [row["id"] for row in good]
    # A cut trace that by chance still names the answer is not found out.
    assert len(kept) <= (5 if name == "cut_trace" else 2)
    assert len(rows) + len(rejects) == 32
    assert {reject["reason"] for reject in rejects} | {fault_of(row, grader) for row in rows} == {
        None,
        REASONS[name],
    }


def test_no_clean_row_is_turned_away_for_its_quality(grader):
    assert not any(fault_of(row, grader) for row in rows_of(400, seed=9))


@pytest.mark.parametrize(
    ("thinking", "answer", "reference", "fault"),
    [
        ("so 3**2 = 9 in Python", "9", "9", None),
        ("thus 3/4", r"\boxed{\frac{3}{4}}", r"\frac34", None),
        ("in all 12000 people", "12,000", "12000", None),
        ("x is 0.25", "0.250", "1/4", None),
        ("hence y equals 7", "y = 7", "7", None),
        (r"an angle of 45 degrees", r"\boxed{45^\circ}", "45", None),
        ("it must be (B)", "B", "B", None),
        ("that makes 6", "**Final Answer**\n\n6", "6", None),
        ("that makes 6", "6", r"First add 2 and 4, so $\boxed{6}$ is right.", None),
        ("that makes 6", "6", "2 + 4 = 6\n#### 6", None),
        ("that makes 6", r"\boxed{6}", "Adding both parts we find 6.", None),
        ("the set is (4, 5)", r"\boxed{(4,5)}", "(4,5)", None),
        # What only looks alike.
        (
            "it is 0",
            "0",
            "Let n > 0 be given. Then 0 < n.\nThis proves the whole claim.",
            "the answer disagrees with the reference",
        ),
        (
            "that makes 2",
            "2",
            r"First add 2 and 4, so $\boxed{6}$ is right.",
            "the answer disagrees with the reference",
        ),
        ("that makes 5", "5", "1.5", "the answer disagrees with the reference"),
        ("that makes 2", "2", "the half of it is 1/2", "the answer disagrees with the reference"),
        (
            "an isosceles one",
            "isosceles",
            "not isosceles but equilateral it is",
            "the answer disagrees with the reference",
        ),
        ("that makes 1.5", "5", "5", "the trace does not reach the answer"),
        ("that makes -7", "7", "7", "the trace does not reach the answer"),
    ],
)
def test_the_grader_decides_whether_answer_reference_and_trace_agree(thinking, answer, reference, fault, grader):
    row = {**ROW, "thinking": thinking, "answer": answer, "reference": reference}
    assert fault_of(row, grader) == fault


@pytest.mark.parametrize(
    ("text", "is_torn"),
    [
        ("**a** and **b**", False), ("**Step 1**(easy)", False), ("***a***", False), ("**`a`** (**7**)", False),
        ("2**3 and 2 ** 3 and (a+b)**2", False), ("x**(n+1) is **big**", False), ("`**kwargs`", False),
        ("```\nf(** x)\n```", False), ("$2** 3$", False), (r"\(2** 3\)", False), ("**$5** or $6", False),
        ("**a", True), ("a**", True), ("**a** and **b", True), ("Answer:** 7", True), ("**2**3", False),
    ],
)  # fmt: skip
def test_bold_markers_count_outside_code_and_mathematics_only(text, is_torn):
    assert has_torn_bold(text) == is_torn


@pytest.mark.parametrize(
    ("changes", "rules", "reason"),
    [
        ({"thinking": " "}, None, "no thinking"),
        ({"answer": ""}, None, "no answer"),
        ({"answer": ""}, ("bold",), None),
        ({"question": "[asy] draw(A--B); [/asy] How long is AB?"}, None, "refers to an image"),
        ({"question": "[asy] draw(A--B); [/asy] How long is AB?", "source": "AIME 1995"}, ("image",), None),
        ({"thinking": "see ![Image](x.png)", "source": "AIME 1995"}, None, "refers to an image"),
        ({"question": "p1. What is x? p2. What is y?"}, None, "a question of numbered parts"),
        ({"question": "Let p12.5 and q1. be given."}, ("numbered_parts",), "a question of numbered parts"),
        ({"question": "Let sup1. and p0. and p1000. be given."}, ("numbered_parts",), None),
        ({"reference": ""}, ("missing", "bold"), None),
        ({"reference": "7"}, ("missing", "bold"), None),
    ],
)
def test_a_row_is_rejected_by_the_rules_of_the_config(changes, rules, reason, grader):
    row = ROW | {"source": "MATH", "reference": ROW["answer"]} | changes
    config = QualityConfig() if rules is None else QualityConfig(rules)
    assert quality_reason(row, config, grader)[0] == reason


@pytest.mark.integration
def test_the_stage_says_which_answers_are_right_whatever_its_rules(tmp_path):
    rows = [
        {"question": "q", "thinking": "so 7", "answer": answer, "reference": reference}
        for answer, reference in (("7", "7"), ("7", "8"), ("7", ""), ("**7", "7"))
    ]
    rows = pool_of(tmp_path, rows)
    _, found = verdicts_of(stage(QualityConfig(rules=("bold",))), rows, tmp_path)
    assert [row["correct"] for row in found] == [True, False, None, True]
    assert [row["reason"] for row in found] == [None, None, None, "torn bold markup"]
    _, found = verdicts_of(stage(QualityConfig(rules=("reference", "answer"))), rows, tmp_path)
    reasons = [None, "the answer disagrees with the reference", "no reference to grade against", None]
    assert [row["reason"] for row in found] == reasons
