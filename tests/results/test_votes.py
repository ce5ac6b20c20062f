"""`votes.py`: classes of answers, maj@k and pass@k, against every subset."""

import collections
import itertools
import json
import random
import statistics

import pytest

from s1jax.grading.equivalence import compare
from s1jax.grading.pool import Grader
from s1jax.results.votes import answer_classes, count_votes, maj_at_k, pass_at_k


def test_pass_at_k_equals_the_share_of_all_subsets_with_a_correct_sample():
    for n, c in itertools.product(range(1, 8), range(8)):
        for k in range(1, n + 1):
            if c <= n:
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def vote_by_hand(answers, correct, k):
    """Every subset, every tie: the rules of the docstring, spelled out."""
    won = []
    for subset in itertools.combinations(range(len(answers)), k):
        votes = collections.Counter("right" if correct[i] else answers[i] for i in subset if answers[i] is not None)
        leaders = [answer for answer in votes if votes[answer] == max(votes.values())]
        won.append(leaders.count("right") / len(leaders) if leaders else 0)
    return statistics.fmean(won)


def test_maj_at_k_equals_the_vote_of_every_subset():
    rng = random.Random(0)
    for _ in range(60):
        answers = [rng.choice([None, "1", "1", "2", "3", "x"]) for _ in range(rng.randint(1, 9))]
        correct = [answer == "1" for answer in answers]
        for k in range(1, len(answers) + 1):
            assert maj_at_k(count_votes(answers, correct), k) == pytest.approx(
                vote_by_hand(answers, correct, k), abs=1e-12
            )


def test_equal_answers_vote_together_whatever_their_spelling():
    answers, correct = ["3", "3", "1/2", "0.5", r"\frac{1}{2}"], [True, True, False, False, False]
    assert maj_at_k(count_votes(answers, correct), 5) == 0
    assert maj_at_k(count_votes(["1/2", "0.5", "3", "3", "4"], [True, True, False, False, False]), 5) == 0.5


def test_a_missing_answer_never_wins_a_vote():
    assert maj_at_k(count_votes([None, None, None, "7"], [False, False, False, True]), 4) == 1
    assert maj_at_k(count_votes([None, None], [False, False]), 2) == 0


def test_a_vote_of_all_samples_is_settled_and_of_one_is_accuracy():
    rng = random.Random(1)
    answers = [str(rng.choice([1, 1, 1, 2, 2, 3])) for _ in range(64)]
    correct = [answer == "1" for answer in answers]
    assert maj_at_k(count_votes(answers, correct), 1) == pytest.approx(statistics.fmean(correct))
    assert maj_at_k(count_votes(answers, correct), 2) == pytest.approx(
        statistics.fmean(correct)
    )  # a tie of two is a draw
    assert maj_at_k(count_votes(answers, correct), 64) == 1


@pytest.mark.parametrize(("first", "second"), [("C) 5 m", "C) 7 m"), ("(C) 5 m", "(C) 7 m")])
def test_votes_do_not_depend_on_the_order_of_the_samples(first, second):
    # "C" equals both others, which are not equal: whichever comes first, all three vote together.
    answers, correct = [first, second, "C", "D", "D", "B"], [False] * 5 + [True]
    assert compare(first, "C") and not compare("C", first) and not compare(first, second)
    for order in itertools.permutations(range(6)):
        votes = count_votes([answers[i] for i in order], [correct[i] for i in order])
        assert votes == (1, [3, 2], 0), order


POOL = [
    "C",
    "C) 5 m",
    "C) 7 m",
    "(C)",
    "1/2",
    "0.5",
    r"\frac{1}{2}",
    "x=1",
    "1",
    "y=1",
    "01",
    "5 m",
    "5",
    "5 kg",
    "",
    "A",
]


def classes_by_closure(answers, correct):
    """Pairs of equal wrong answers by Warshall's algorithm, on a matrix of all samples."""
    n = len(answers)
    wrong = [answer is not None and not is_correct for answer, is_correct in zip(answers, correct, strict=True)]
    same = [
        [
            wrong[i]
            and wrong[j]
            and bool(answers[i] == answers[j] or compare(answers[i], answers[j]) or compare(answers[j], answers[i]))
            for j in range(n)
        ]
        for i in range(n)
    ]
    for middle, i, j in itertools.product(range(n), repeat=3):
        same[i][j] = same[i][j] or (same[i][middle] and same[middle][j])
    return {(i, j) for i in range(n) for j in range(n) if same[i][j]}


def test_classes_are_the_connected_components_of_equal_wrong_answers():
    rng = random.Random(2)
    for trial in range(40):
        answers = [rng.choice([None, *POOL]) for _ in range(rng.randint(1, 12))]
        correct = [answer is not None and rng.random() < 0.3 for answer in answers]
        classes = answer_classes(answers, correct)
        assert [c == 0 for c in classes] == correct and [c is None for c in classes] == [a is None for a in answers]
        pairs = {(i, j) for i, c in enumerate(classes) for j, d in enumerate(classes) if c and c == d}
        assert pairs == classes_by_closure(answers, correct), (trial, answers, correct)


def test_votes_over_classes_equal_every_subset_in_any_order():
    rng = random.Random(3)
    for trial in range(30):
        answers = [rng.choice([None, *POOL[:8]]) for _ in range(rng.randint(2, 8))]
        correct = [answer is not None and rng.random() < 0.3 for answer in answers]
        classes = answer_classes(answers, correct)
        order = rng.sample(range(len(answers)), len(answers))
        votes = count_votes([answers[i] for i in order], [correct[i] for i in order])
        assert votes == count_votes(answers, correct), (trial, answers, correct)
        for k in range(1, len(answers) + 1):
            by_hand = vote_by_hand(classes, correct, k)
            assert maj_at_k(votes, k) == pytest.approx(by_hand, abs=1e-12), (trial, answers, correct, k)


def test_more_subsets_than_a_float_can_count_are_no_trouble():
    answers, correct = ["1"] * 5 + [None] * 1195, [True] * 5 + [False] * 1195  # C(1200, 600) is about 1e360
    assert maj_at_k(count_votes(answers, correct), 600) == pytest.approx(pass_at_k(1200, 5, 600), rel=1e-9)


def test_voting_on_5276_real_responses_equals_every_subset(shared):
    text = (shared / "data" / "gsm8k_graded_responses.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    problems = collections.defaultdict(list)
    with Grader() as grader:
        for row in rows:
            extracted, verdict = grader.grade(row["response"], row["gold"])
            problems[row["problem_id"]].append((extracted, verdict == "equal"))
    for graded in list(problems.values())[::7]:
        answers, correct = zip(*graded, strict=True)
        for k in (1, 2, 3, 4):
            assert maj_at_k(count_votes(answers, correct), k) == pytest.approx(
                vote_by_hand(answers, correct, k), abs=1e-12
            )
