"""`duplicates.py`: one row per question, whatever the spelling and whatever the order of the pool."""

import importlib.util
import random
import re

import pytest

from data_tools.curation.duplicates import (
    NEARLY_SAME,
    SAME,
    SAME_BUT_SPELLING,
    DuplicatesConfig,
    _describe_part,
    stage,
)
from data_tools.curation.spelling import Neighbours, jaccard, signatures, spell
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from tests.support.curation import pool_of, verdicts_of

LONG = "A train leaves the station at noon and travels north at a constant speed of 60 miles per hour "
LONG += "until it meets a second train, which left another station an hour before and travels south on the same track"


def verdicts(tmp_path, rows, near_threshold=0.9, part_rows=10):
    pool = pool_of(tmp_path, rows, part_rows=part_rows)
    return verdicts_of(stage(DuplicatesConfig(near_threshold)), pool, tmp_path)[1]


@pytest.mark.parametrize(
    ("question", "other", "reason"),
    [
        ("What is $x+y$?", "What is $x+y$?", SAME),
        ("What is $x+y$?", "  WHAT is\n$x + y$ ?", SAME_BUT_SPELLING),
        ("What is $x,y$?", r"What is $x,\,y$?", SAME_BUT_SPELLING),
        ("What is \uff18 m\u00b2?", "what is 8 M2?", SAME_BUT_SPELLING),
        ("Stra\u00dfe", "STRASSE", SAME_BUT_SPELLING),
        (LONG, LONG.replace("leaves", "left"), NEARLY_SAME),
        (LONG, LONG.replace("60", "80"), None),
        (LONG, LONG.replace("second", "third"), None),
        (LONG.replace("60", "six"), LONG.replace("60", "ten"), None),
        ("Add 1 2 and 3", "Add 12 and 3", None),
        ("Add", "Subtract", None),
    ],
)
def test_questions_are_one_if_only_spelling_differs_or_little_but_no_number(tmp_path, question, other, reason):
    assert {v["reason"] for v in verdicts(tmp_path, [{"question": question}, {"question": other}])} == {None, reason}


def test_without_a_threshold_near_equality_does_not_count(tmp_path):
    rows = [{"question": LONG}, {"question": LONG.replace("leaves", "left")}, {"question": LONG.upper()}]
    reasons = [v["reason"] for v in verdicts(tmp_path, rows, near_threshold=0)]
    assert reasons.count(None) == 2 and reasons.count(SAME_BUT_SPELLING) == 1


def test_the_detail_names_the_kept_row_by_id_and_place(tmp_path):
    rows = [
        {"question": "Q?", "id": "a", "file": "pool.jsonl"},
        {"question": "Q?", "id": "b", "file": "pool.jsonl", "thinking": "so"},
    ]
    assert [v["detail"] for v in verdicts(tmp_path, rows)] == ["b at pool.jsonl:2", None]


def test_a_row_with_a_trace_is_kept_before_one_without_and_then_one_with_a_reference(tmp_path):
    for seed in range(20):
        source = f"s{seed}"  # the hash that decides between equals
        rows = [
            {"question": "q ?"},
            {"question": "q?", "reference": "2"},
            {"question": "Q?", "thinking": "so", "source": source},
        ]
        assert [v["reason"] is None for v in verdicts(tmp_path, rows)] == [False, False, True]
        assert [v["reason"] is None for v in verdicts(tmp_path, [*rows[:2], {"question": "Q?", "source": source}])] == [
            False, True, False,
        ]  # fmt: skip


def chain():
    """Questions of which each is near to the next, and the first is far from the last."""
    words = [f"{a}{b}word" for a in "abcdefgh" for b in "klmno"]
    return [" ".join(["x".join(["new", w]) if i < 2 * step else w for i, w in enumerate(words)]) for step in range(12)]


def test_a_chain_of_small_changes_removes_no_question_that_is_far_from_all_kept_ones(tmp_path):
    questions = chain()
    assert jaccard(spell(questions[0]), spell(questions[1])) > 0.9 > jaccard(spell(questions[0]), spell(questions[-1]))
    found = verdicts(tmp_path, [{"question": q, "id": str(i)} for i, q in enumerate(questions)])
    kept = [i for i, v in enumerate(found) if v["reason"] is None]
    assert len(kept) > 1
    for i, v in enumerate(found):
        if v["reason"]:
            other = int(v["detail"].split()[0])
            assert other in kept and jaccard(spell(questions[i]), spell(questions[other])) >= 0.9


def random_pool(rng):
    """Questions from few words, many of which are copies with a little change."""
    vocabulary = [f"word{chr(97 + i)}" for i in range(20)] + ["3", "7", "$x^2$"]
    questions = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 30))) for _ in range(12)]
    for _ in range(30):
        words = rng.choice(questions).split()
        place = rng.randrange(len(words))
        words[place] = rng.choice([words[place].upper(), words[place] + " ", "other", "5"])
        questions.append(rng.choice([" ", "  ", "\n"]).join(words))
    rng.shuffle(questions)
    return [
        dict(question=q, id=str(i), thinking=rng.choice(["", "so"]), source=rng.choice("ab"))
        for i, q in enumerate(questions)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_verdicts_equal_a_comparison_of_all_pairs(tmp_path, seed):
    rng = random.Random(seed)
    rows = random_pool(rng)
    threshold = rng.choice([0.6, 0.8, 0.9])
    found = verdicts(tmp_path, rows, threshold)
    described = _describe_part(
        False, pool_of(tmp_path, rows).table(*["question", "thinking", "answer", "reference", "source", "domain"])
    )
    places = described["place"].to_pylist()

    def form(question):
        return re.sub(r"\s", "", question.lower()), re.findall(r"\d+", question)

    def near(a, b):
        (a, numbers), (b, others) = form(a), form(b)
        grams, more = ({t[i : i + 5] for i in range(max(1, len(t) - 4))} for t in (a, b))
        return numbers == others and len(grams & more) / len(grams | more) >= threshold

    kept = []
    for i in sorted(range(len(rows)), key=lambda i: (places[i], i)):
        same = [j for j in kept if form(rows[j]["question"]) == form(rows[i]["question"])]
        others = same or [j for j in kept if near(rows[i]["question"], rows[j]["question"])]
        if not others:
            kept.append(i)
            assert found[i]["reason"] is None, seed
        else:
            assert found[i]["reason"] is not None, seed
            equal = rows[i]["question"] == rows[int(found[i]["detail"].split()[0])]["question"]
            assert found[i]["reason"] == (SAME if equal else SAME_BUT_SPELLING if same else NEARLY_SAME)
            assert int(found[i]["detail"].split()[0]) == others[0], seed
    assert 5 < len(kept) < len(rows) - 5


@pytest.mark.parametrize("seed", range(4))
def test_the_kept_rows_do_not_depend_on_the_order_of_the_pool(tmp_path, seed):
    rng = random.Random(seed)
    rows = random_pool(rng) + [{"question": q, "id": f"c{i}"} for i, q in enumerate(chain())]
    shuffled = rng.sample(rows, len(rows))

    def kept(rows):
        return {row["id"] for row, v in zip(rows, verdicts(tmp_path, rows), strict=True) if v["reason"] is None}

    # Rows that differ only in their ids may stand for each other.
    content = {row["id"]: tuple(row.get(k, "") for k in ("question", "thinking", "source")) for row in rows}
    assert {content[i] for i in kept(rows)} == {content[i] for i in kept(shuffled)}


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_pairs_above_the_threshold_are_compared(threshold):
    rng = random.Random(1)
    missed = total = 0
    for _ in range(150):
        text = "".join(rng.choices("abcdefghij", k=200))
        cut = int((1 - threshold) / (1 + threshold) * 196) - 5  # this many runs of five are lost
        a, b = spell(text), spell(text[:-cut] + "z" * cut)
        if jaccard(a, b) >= threshold:
            index = Neighbours(threshold)
            index.add(0, signatures([a])[0])
            missed, total = missed + (index.of(signatures([b])[0]) != [0]), total + 1
    assert total > 100 and missed == 0


def test_a_missing_library_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    stage(DuplicatesConfig(near_threshold=0))
    with pytest.raises(UserError, match=r"near_threshold needs datasketch: .*\[curation\]"):
        stage(DuplicatesConfig())


@pytest.mark.parametrize("threshold", [-0.1, 0.3, 1.5])
def test_a_threshold_that_would_make_most_questions_copies_is_refused(threshold):
    with pytest.raises(UserError, match=f"near_threshold is {threshold}"):
        DuplicatesConfig(threshold)


def test_near_copies_of_real_aime_questions_are_found(shared, tmp_path):
    released = [
        r["question"] for _, r in jsonl.read(shared / "data" / "s1k_questions.jsonl") if "AIME" in r["source_type"]
    ]
    own = [r["question"] for _, r in jsonl.read(shared / "data" / "aime_1983_2023.jsonl")]
    found = verdicts(tmp_path, [{"question": q} for q in released + own], part_rows=2000)
    # Both files hold the AIME problems, from different transcriptions.
    num_gone = sum(v["reason"] is not None for v in found)
    assert num_gone > 0.6 * len(released)
