"""`regrade.py`: rows get new grades without a model, and nothing else changes."""

import json
import logging

import pytest

from s1jax.evaluate.problems import read_problems
from s1jax.evaluate.regrade import RegradeConfig, regrade
from s1jax.results.samples import read_samples
from s1jax.runtime.chat_protocol import Reply
from tests.support.samples import sample


@pytest.fixture
def problems(tmp_path):
    """A file of two problems."""
    path = tmp_path / "toy.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"p{i}", "question": f"{i}?", "answer": str(i)}) + "\n" for i in range(2))
    )
    return path


@pytest.fixture
def rows(tmp_path, problems):
    """A file of four rows of which three have a wrong grade, one of them in the format before verdicts, with a column of the user's."""
    digests = [problem.digest for problem in read_problems(str(problems))]
    right = dict(extracted="1", correct=True, problem_id="p1", problem=digests[1])
    lines = [
        sample(**right, answer_text="Answer: 1"),
        sample(**right, answer_text="Answer: 2", seed=1),
        sample(
            **right | {"extracted": "7", "correct": False, "verdict": "timed_out"}, answer_text=r"\boxed{01}", seed=2
        ),
        {name: value for name, value in sample(**right, seed=3).items() if name != "verdict"}
        | {"answer_text": "?", "mine": [1]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_get_their_grade_and_keep_all_else(rows, problems, caplog):
    caplog.set_level(logging.INFO, "s1jax")
    before = [json.loads(line) for line in rows.read_text().splitlines()]
    assert regrade(RegradeConfig(rows, (str(problems),))) == rows
    after = [json.loads(line) for line in rows.read_text().splitlines()]
    grades = ("extracted", "verdict", "correct")
    assert [tuple(row[name] for name in grades) for row in after] == [
        ("1", "equal", True), ("2", "different", False), ("01", "equal", True), (None, "no_answer", False),
    ]  # fmt: skip
    rest = [{name: value for name, value in row.items() if name not in grades} for row in before]
    assert [{name: value for name, value in row.items() if name not in grades} for row in after] == rest
    assert len(read_samples(rows)) == 4 and list(after[3])[-1] == "mine"
    assert "3 verdicts changed:\n  equal -> different: problem 'p1', '2'\n  timed_out -> equal: " in caplog.text
    caplog.clear()
    regrade(RegradeConfig(rows, (str(problems),)))
    assert "0 verdicts changed" in caplog.text


def test_another_output_leaves_the_rows_as_they_are_and_replaces_nothing(rows, problems, tmp_path):
    before, output = rows.read_text(), tmp_path / "new" / "rows.jsonl"
    assert regrade(RegradeConfig(rows, (str(problems),), output)) == output
    assert rows.read_text() == before and len(read_samples(output)) == 4
    with pytest.raises(ValueError, match=r"--output .* exists: give another one"):
        regrade(RegradeConfig(rows, (str(problems),), problems))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda text: text.replace('"1?"', '"one?"'),
            "problem 'p1' of the rows has another question or answer in benchmark toy",
        ),
        (lambda text: text.splitlines()[0], "problem 'p1' of the rows is missing from benchmark toy"),
    ],
)
def test_rows_of_other_problems_are_refused_and_left_as_they_are(rows, problems, edit, message):
    before = rows.read_text()
    problems.write_text(edit(problems.read_text()))
    with pytest.raises(ValueError, match=message):
        regrade(RegradeConfig(rows, (str(problems),)))
    with pytest.raises(ValueError, match="the problems of benchmark toy are not found: give their file as --benchmark"):
        regrade(RegradeConfig(rows))
    assert rows.read_text() == before


def test_a_judge_decides_only_about_answers_that_were_found_and_are_not_equal(tmp_path, monkeypatch):
    golds = ["the red house", "the red house", "C", "4", "7"]
    texts = ["Answer: a house that is red", "Answer: a barn", "Answer: B", "Answer: 4", "I do not know."]
    benchmark = tmp_path / "toy.jsonl"
    benchmark.write_text(
        "".join(json.dumps({"id": f"p{i}", "question": f"{i}?", "answer": g}) + "\n" for i, g in enumerate(golds))
    )
    digests = [problem.digest for problem in read_problems(str(benchmark))]
    lines = [
        sample(problem_id=f"p{i}", problem=digests[i], answer_text=text, extracted="x", correct=False)
        for i, text in enumerate(texts)
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = []

    def ask(endpoint, messages, sampling):
        asked.append(messages)
        return Reply("Yes" if "house that is red" in messages[0]["content"] else "No", "", "stop", 0, 0)

    monkeypatch.setattr("s1jax.runtime.endpoint.Endpoint._ask", ask)
    config = RegradeConfig(rows, (str(benchmark),), judge="http://localhost:1/v1", judge_model="j")
    regrade(config)
    after = read_samples(rows)
    assert [row["verdict"] for row in after] == ["equal", "different", "different", "equal", "no_answer"]
    assert [row["judge"] for row in after] == ["j", "", "", "", ""] and after[0]["correct"]
    assert len(asked) == 2
    regrade(config)
    assert len(asked) == 2 and read_samples(rows) == after
    regrade(RegradeConfig(rows, (str(benchmark),)))
    assert read_samples(rows)[0]["verdict"] == "different"
    with pytest.raises(ValueError, match="--judge and --judge-model belong together"):
        RegradeConfig(rows, judge="http://localhost:1/v1")


def test_rows_of_a_file_with_mapped_columns_are_graded_again(tmp_path):
    file = tmp_path / "toy.jsonl"
    file.write_text(json.dumps({"id": "p0", "prompt": "1 + 1?", "target": "2"}) + "\n")
    columns = ("question=prompt", "answer=target")
    (problem,) = read_problems(str(file), columns)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(sample(problem=problem.digest, answer_text="Answer: 2", correct=False)) + "\n")
    regrade(RegradeConfig(rows, (str(file),), columns=columns))
    assert read_samples(rows)[0]["verdict"] == "equal"
