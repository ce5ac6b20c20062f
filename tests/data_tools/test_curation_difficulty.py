"""`difficulty.py`: which rows models solve already."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from data_tools.curation.difficulty import DifficultyConfig, stage
from s1jax.data.condition import Condition
from s1jax.decode.request import Request
from s1jax.results.samples import read_samples
from s1jax.runtime import jsonl
from tests.support.curation import pool_of, verdicts_of
from tests.support.quickstart import BASE, rows_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONDITION = Condition(0, max_answer_tokens=12, dtype="float32", thinking_format="none")
QUICK = DifficultyConfig(models=(str(BASE),), condition=CONDITION, num_rows=32)
NAME = "data_tools/quickstart/tiny_base"


@pytest.fixture(scope="module")
def pool():
    rows = rows_of(48, seed=11, num_steps=1)
    return [{"question": row["question"], "reference": row["answer"]} for row in rows]


@pytest.fixture(scope="module")
def replies(base, pool):
    """What the base model writes behind each chat prompt."""
    engine, chat = base
    condition = Condition(0, max_answer_tokens=12)
    requests = [Request(tuple(chat.encode_chat(row["question"])), condition, thinks=False) for row in pool]
    return [chat.decode(c.tokens, skip_special_tokens=True) for c in engine.decode(requests)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(models=("m", "m")), "models m, m: one is there twice"),
        (dict(judge="http://localhost:1/v1"), "judge and judge_model belong together"),
        (dict(num_rows=0), "num_rows is 0; it must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DifficultyConfig(**changes)


def test_a_stage_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs --difficulty\.models"):
        stage(DifficultyConfig(), tmp_path)


def test_the_key_depends_on_what_can_change_an_answer_and_on_nothing_else(tmp_path):
    def key(condition=CONDITION, **changes):
        return stage(replace(QUICK, condition=condition, **changes), tmp_path).key("")

    same = [key(), key(num_rows=5), key(seed=7)]
    assert len(set(same)) == 1
    changes = (
        dict(max_answer_tokens=13),
        dict(dtype="bfloat16"),
        dict(prompt_suffix="Briefly."),
        dict(temperature=0.5),
    )
    other = [key(replace(CONDITION, **change)) for change in changes]
    other.append(key(replace(CONDITION, temperature=0.5), seed=7))
    other.append(key(judge="http://localhost:1/v1", judge_model="j"))
    assert len({*same, *other}) == 7
    assert key(judge="http://localhost:2/v1", judge_model="j") == other[-1]


@pytest.mark.integration
def test_a_row_is_rejected_exactly_if_the_models_number_is_that_of_the_reference(pool, replies, tmp_path):
    result, rows = verdicts_of(stage(QUICK, tmp_path / "calls"), pool_of(tmp_path, pool), tmp_path)

    def number(text):
        return int(re.search(r"-?\d+", text.replace(",", ""))[0])

    solved = [number(reply) == number(row["reference"]) for reply, row in zip(replies, pool, strict=True)]
    assert 8 < sum(solved) < 40
    assert [row["reason"] for row in rows] == [f"solved by {NAME}" if is_solved else None for is_solved in solved]
    assert [row["solved_by"] for row in rows] == [NAME if is_solved else "" for is_solved in solved]
    assert result.summary["reasons"] == {f"solved by {NAME}": sum(solved)}
    samples = read_samples(tmp_path / "calls" / f"difficulty-{NAME.replace('/', '-')}.jsonl")
    assert sorted(row["answer_text"] for row in samples) == sorted(replies)


@pytest.mark.integration
def test_an_answered_question_is_not_asked_again_whatever_rows_came_before(pool, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    _, first = verdicts_of(stage(QUICK, calls), pool_of(tmp_path / "a", pool), tmp_path / "a")
    (file,) = calls.glob("difficulty-*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:20]) + lines[20][:30])  # killed while it wrote a row
    _, again = verdicts_of(stage(QUICK, calls), pool_of(tmp_path / "b", pool), tmp_path / "b")
    assert again == first
    assert len(read_samples(file)) == 48 and file.read_bytes().startswith(b"".join(lines[:20]))
    whole = file.read_bytes()
    monkeypatch.setattr("s1jax.evaluate.run.load_engine", None)
    some = pool[10:30]
    _, part = verdicts_of(stage(QUICK, calls), pool_of(tmp_path / "c", some), tmp_path / "c")
    assert file.read_bytes() == whole
    assert [row["reason"] for row in part] == [row["reason"] for row in first[10:30]]


@pytest.mark.integration
def test_of_several_readings_of_a_reference_one_that_agrees_is_enough(pool, replies, tmp_path):
    answer = re.search(r"\d+", replies[0])[0]
    wrong = str(int(answer) + 1)
    references = {
        f"{answer}\nThat is what is left.": True,  # the first line may be the answer
        f"They add up.\n{answer}": True,  # or the last
        f"{answer} is too much. \\boxed{{{wrong}}}": False,
        f"{wrong} is wrong. \\boxed{{{answer}}}": True,
        f"Work. #### {answer}": True,
        f"#### {wrong}": False,
        "": False,
        " \n": False,
        "####": False,
    }
    rows = [{"question": pool[0]["question"], "reference": reference} for reference in references]
    _, found = verdicts_of(stage(QUICK, tmp_path / "calls"), pool_of(tmp_path, rows), tmp_path)
    assert [bool(row["solved_by"]) for row in found] == list(references.values())
    assert len(jsonl.read(tmp_path / "calls" / "difficulty.jsonl")) == 6


@pytest.mark.integration
def test_every_model_is_asked_and_a_row_that_does_not_fit_one_of_them_is_rejected(pool, replies, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(BASE, twin)
    settings = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 200}))
    config = replace(QUICK, models=(str(BASE), str(twin)))
    right = {"question": pool[0]["question"], "reference": replies[0]}
    rows = [right, right | {"reference": "none of these"}, {"question": "1 + 1? " * 40, "reference": "2"}]
    _, found = verdicts_of(stage(config, tmp_path / "calls"), pool_of(tmp_path, rows), tmp_path)
    reasons = [f"solved by {NAME}, {twin}", None, f"the question is too long for {twin}"]
    assert [row["reason"] for row in found] == reasons
    assert [row["solved_by"] for row in found] == [f"{NAME}, {twin}", "", ""]
    assert len(jsonl.read(tmp_path / "calls" / "difficulty.jsonl")) == 2


@pytest.mark.integration
def test_a_judge_decides_where_the_rules_find_nothing_equal_but_not_about_letters(pool, replies, tmp_path, monkeypatch):
    asked = []

    class Judge:
        def __init__(self, url, model, cache, limits):
            assert (url, model, cache) == ("http://localhost:1/v1", "j", tmp_path / "calls" / "difficulty.judge.jsonl")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def are_equal(self, question, answer, gold):
            asked.append((question, answer, gold))
            return {"a dozen": True, "a few": None}.get(gold, False)

    monkeypatch.setattr("data_tools.curation.difficulty.Judge", Judge)
    references = ["a dozen", "a few", "a score", "B", replies[0]]
    rows = [{"question": pool[0]["question"], "reference": reference} for reference in references]
    config = replace(QUICK, judge="http://localhost:1/v1", judge_model="j")
    _, found = verdicts_of(stage(config, tmp_path / "calls"), pool_of(tmp_path, rows), tmp_path)
    assert [bool(row["solved_by"]) for row in found] == [True, False, False, False, True]
    stated = replies[0].strip().rpartition("Answer:")[2].strip()
    assert sorted(asked) == sorted((pool[0]["question"], stated, gold) for gold in references[:3])
