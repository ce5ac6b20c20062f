"""`pool.py`: verdicts of whole responses, hostile and real ones, from any thread."""

import json
import random
import threading

import pytest

from s1jax.grading import pool
from s1jax.grading.pool import Grade, Grader
from s1jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def grader():
    """A grader whose workers all tests of this module share."""
    with Grader() as grader:
        yield grader


@pytest.fixture
def no_workers(monkeypatch):
    """Fails if a worker process is started."""
    monkeypatch.setattr(pool.subprocess, "Popen", None)


@pytest.mark.parametrize(
    ("text", "gold", "grade"),
    [
        (r"\boxed{033}", "33", Grade("033", "equal")),
        (r"\boxed{34}", "33", Grade("34", "different")),
        ("no idea", "33", Grade(None, "no_answer")),
        ("Answer:", "33", Grade(None, "no_answer")),
        ("Answer: C) 5 m", "C", Grade("C", "equal")),
        ("Answer: 5 m", "C", Grade(None, "no_answer")),
        ("Answer: D", "(C)", Grade("D", "different")),
    ],
)
def test_a_verdict_says_why(grader, no_workers, text, gold, grade):
    future = grader.submit(text, gold)
    assert future.done() and future.result() == grade


@pytest.mark.integration
def test_algebra_is_done_by_workers(grader):
    assert grader.grade(r"\boxed{x^2-1}", "(x-1)(x+1)") == ("x^2-1", "equal")
    assert grader.grade(r"\boxed{x^2-1}", "(x-1)(x+2)") == ("x^2-1", "different")
    assert grader.are_equal("(x-1)(x+1)", "x^2-1") and not grader.are_equal("x^2-2", "x^2-1")


HOSTILE = {
    "9^{9^{9^9}}": "timed_out",
    "99999999!": "timed_out",
    "2^{99999999999}": "timed_out",
    r"\sum_{k=1}^{1000000000} k^{k}": None,
    "(" * 3000 + ")" * 3000: "different",
    r"\frac{1}{" * 400 + "}" * 400: "different",
    "__import__('os').system('exit 1')": "different",
    "1" * 1_000_000: "different",
    "{{{": "no_answer",
    "5}{": "different",
    "\0" * 10: "different",
    "5\0": "different",
    "\u202e5\u202c": "different",
    "\ud800": "different",
}


@pytest.mark.slow
def test_hostile_answers_get_a_verdict_in_a_thread_and_the_next_answer_is_graded_as_usual(grader):
    verdicts = {}

    def grade_all():
        for text in HOSTILE:
            grades = [grader.grade(rf"\boxed{{{text}}}", gold) for gold in ("x+5", "6")]
            verdicts[text] = grades[0].verdict
            assert "equal" not in [grade.verdict for grade in grades]
            assert grader.grade(r"\boxed{2x+2}", "2(x+1)").verdict == "equal"

    thread = threading.Thread(target=grade_all)
    thread.start()
    thread.join()
    assert [verdicts[text] for text, wanted in HOSTILE.items() if wanted] == list(filter(None, HOSTILE.values()))


@pytest.mark.integration
def test_a_worker_that_was_killed_is_replaced(grader):
    assert grader.are_equal("2x+2", "2(x+1)")
    for worker in grader._workers:
        if worker._process is not None:
            worker._process.kill()
            worker._process.wait()
    assert all(grader.are_equal(f"2x+{2 * i}", f"2(x+{i})") for i in range(4))


@pytest.mark.integration
def test_a_worker_that_cannot_work_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    package = tmp_path / "s1jax" / "grading"
    package.mkdir(parents=True)
    (package / "worker.py").write_text("raise ImportError('no Math-Verify')")
    with Grader() as grader, pytest.raises(UserError, match="the grading process ended with exit code 1"):
        grader.are_equal("x+1", "1+x")


def test_a_full_pool_that_is_closed_starts_nothing(no_workers):
    with Grader() as grader:
        assert grader.grade("Answer: 1", "1").verdict == "equal"


# ---- real data ----


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_grades_agree_with_the_labels_of_5276_real_responses(shared, grader):
    rows = read(shared / "data" / "gsm8k_graded_responses.jsonl")
    graded = [grader.grade(row["response"], row["gold"]).verdict == "equal" for row in rows]
    assert [row["problem_id"] for row, g in zip(rows, graded, strict=True) if g != row["is_correct"]] == []
    assert sum(graded) == 2001


def test_reported_cases_get_their_verdict(shared, grader):
    for case in read(shared / "cases" / "grading.jsonl"):
        assert (grader.grade(case["text"], case["gold"]).verdict == "equal") is case["want"], case


@pytest.mark.parametrize(
    ("name", "num_boxed"), [("math500", 500), ("aime_1983_2023", 973), ("aime24", 30), ("aime25", 29)]
)
def test_every_boxed_answer_of_a_reference_solution_equals_its_gold(shared, grader, name, num_boxed):
    rows = read(shared / "data" / f"{name}.jsonl")
    grades = [grader.grade(row["solution"] or "", str(row["answer"])) for row in rows]
    assert [grade for grade in grades if grade.verdict not in ("equal", "no_answer")] == []
    assert sum(grade.verdict == "equal" for grade in grades) == num_boxed


@pytest.mark.integration
@pytest.mark.parametrize("name", ["math500", "aime_1983_2023", "gsm8k_test"])
def test_the_gold_answer_of_another_problem_is_never_equal(shared, grader, name):
    golds = [str(row["answer"]) for row in read(shared / "data" / f"{name}.jsonl")]
    rng = random.Random(0)
    pairs = [(a, b) for a, b in (rng.sample(golds, 2) for _ in range(300)) if a != b][:200]
    futures = [grader.submit(rf"\boxed{{{answer}}}", gold) for answer, gold in pairs]
    wrong = [pair for pair, future in zip(pairs, futures, strict=True) if future.result().verdict == "equal"]
    assert len(pairs) == 200 and wrong == []


@pytest.mark.parametrize("name", ["aime24", "aime25", "aime_1983_2023", "gsm8k_test"])
def test_integer_golds_equal_themselves_boxed_and_no_neighbour(shared, grader, no_workers, name):
    for row in read(shared / "data" / f"{name}.jsonl"):
        gold = str(row["answer"])
        assert grader.grade(rf"so \boxed{{{gold}}}.", gold) == (gold, "equal")
        assert not grader.are_equal(str(int(gold.replace(",", "")) + 1), gold)
