"""`curate.py`: copies, contamination, difficulty and diversity."""

import itertools
import json
import logging
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_tools.curation import curate
from data_tools.quickstart.arithmetic import make_heldout, make_pool
from s1jax.runtime import jsonl
from s1jax.runtime.lock import Lock
from tests.support.quickstart import BASE, rows_of


def test_of_copies_one_is_kept_whatever_their_order():
    rows = rows_of(20)
    copies = [*rows, *[row | {"thinking": row["thinking"] + " "} for row in rows[:5]], *rows[3:8]]
    copies += [row | {"question": row["question"].upper(), "thinking": "Z"} for row in rows[10:12]]
    copies += [row | {"method": "token_conditional", "requested": label} for row in rows[15:17] for label in "48"]
    kept = []
    for order in (copies, copies[::-1]):
        kept.append(curate.first_of_copies(order))
    by_id = [sorted(rows, key=lambda row: row["id"]) for rows in kept]
    assert by_id[0] == by_id[1] and len(by_id[0]) == 20


def test_eight_shared_words_contaminate_whatever_their_case_and_spacing_but_seven_do_not():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    rule = curate.contamination_rule([" ".join(["start", *words, "end"])], 8)

    def reason(question):
        return rule({"question": question})

    assert reason("Other ONE  two three\nfour five six seven eight words here")
    assert not reason("other one two three four five six seven nine words here")
    assert not reason("other one two three four five six seven eight, words here")
    assert reason("one two three four five six seven eight")
    assert not reason("two three four five six seven eight")


def test_a_held_out_question_is_found_even_if_it_is_shorter_than_the_run():
    problem = make_heldout(1, 0)[0]
    assert len(problem.question.split()) < 28
    rule = curate.contamination_rule([problem.question], 28)
    assert rule({"question": problem.question.upper().replace(" ", "  ")}) == "is a held-out question"


def test_diversity_draws_domains_evenly_and_long_traces_first():
    rows = [
        {"id": f"{domain}{i}", "domain": domain}
        for domain, n in (("many", 400), ("few", 100), ("two", 2))
        for i in range(n)
    ]
    rows = [row | {"question": row["id"]} for row in rows]
    lengths = [int(re.search(r"\d+", row["id"]).group()) for row in rows]
    chosen = curate.draw_diverse(rows, lengths, 62, seed=0)
    counts = Counter(row["domain"] for row in chosen)
    assert counts["two"] == 2 and abs(counts["many"] - counts["few"]) < 25
    assert len({row["id"] for row in chosen}) == 62
    assert min(int(row["id"].removeprefix("many")) for row in chosen if row["domain"] == "many") > 350


def test_the_longest_trace_of_a_domain_is_drawn_first_half_the_time_and_each_next_one_half_as_often():
    rows = [{"id": str(i), "domain": "d", "question": str(i)} for i in range(5)]
    lengths = [10 - i for i in range(5)]
    first = Counter(curate.draw_diverse(rows, lengths, 1, seed)[0]["id"] for seed in range(4000))
    share = np.array([first[str(i)] / 4000 for i in range(5)])
    assert np.abs(share - 2.0 ** -np.arange(5) / 1.9375).max() < 0.03


def test_the_draw_is_a_function_of_the_seed_and_not_of_the_order_of_the_rows():
    rows = rows_of(200)
    lengths = [len(row["thinking"]) for row in rows]
    chosen = curate.draw_diverse(rows, lengths, 50, seed=3)
    assert chosen == curate.draw_diverse(rows[::-1], lengths[::-1], 50, seed=3)
    assert chosen != curate.draw_diverse(rows, lengths, 50, seed=4)


def test_rows_of_two_sources_that_number_alike_are_told_apart():
    rows = [{"id": "0", "domain": "d", "question": f"{i}"} for i in range(6)]
    lengths = [5, 1, 1, 1, 1, 1]
    chosen = curate.draw_diverse(rows, lengths, 6, seed=0)
    assert sorted(row["question"] for row in chosen) == [row["question"] for row in rows]
    firsts = [curate.draw_diverse(rows, lengths, 1, seed)[0]["question"] for seed in range(60)]
    assert firsts.count("0") > 20


def test_drawing_more_rows_than_there_are_is_refused():
    with pytest.raises(ValueError, match="only 5 rows are left to draw 6 from"):
        curate.draw_diverse(rows_of(5), [1] * 5, 6, seed=0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.jsonl": '{"question": "mine"}\n'}, "would replace {tmp}/train.jsonl, which no curation wrote"),
        ({"train.rejects.jsonl": "notes"}, "would replace {tmp}/train.rejects.jsonl, which no curation wrote"),
        ({"train.jsonl": "", "train.rejects.jsonl": '{"id": 1}\n'}, "would replace {tmp}/train.rejects.jsonl"),
        ({"train.jsonl": '{"mine": 1}\n', "train.rejects.jsonl": ""}, "would replace {tmp}/train.jsonl, which"),
        ({"train.rejects.jsonl/x": ""}, "train.rejects.jsonl cannot be written: it is a directory"),
        (
            {"train.jsonl": "", "train.rejects.jsonl": '{"stage": "copies", "reason": "r"}\n'},
            "pool.jsonl",
        ),  # the pool is absent
    ],
)
def test_only_what_a_curation_wrote_is_replaced(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    pool, heldout = str(tmp_path / "pool.jsonl"), str(tmp_path / "heldout.jsonl")
    (tmp_path / "heldout.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((OSError, ValueError), match=message.format(tmp=tmp_path)):
        curate.curate(curate.CurateConfig(pool, tmp_path / "train.jsonl", str(BASE), heldout))
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_curation_with_one_output_is_refused(tmp_path):
    config = curate.CurateConfig("pool.jsonl", tmp_path / "train.jsonl", str(BASE), "heldout.jsonl")
    for path in (config.output, config.rejects):
        with Lock(path), pytest.raises(ValueError, match=f"{path} is being written by process"):
            curate.curate(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
def test_what_the_difficulty_stage_drops_is_what_the_base_answers_rightly(base, grader):
    engine, chat = base
    rows = rows_of(96, seed=11, num_steps=1)
    solved = curate.solved_by(engine, chat, rows, max_answer_tokens=8, num_rows=96, grader=grader)
    wrong_answers = [row | {"answer": "1000"} for row in rows]
    assert 24 < sum(solved) < 72
    assert not any(curate.solved_by(engine, chat, wrong_answers, max_answer_tokens=8, num_rows=96, grader=grader))


@pytest.mark.integration
def test_curating_turns_every_bad_row_away_and_writes_the_same_rows_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, "data_tools")
    jsonl.write(tmp_path / "pool.jsonl", make_pool(400, 0, make_heldout(40, 0)))
    problems = [{"question": problem.question, "answer": problem.answer} for problem in make_heldout(40, 0)]
    jsonl.write(tmp_path / "heldout.jsonl", problems)
    config = curate.CurateConfig(
        pool=str(tmp_path / "pool.jsonl"),
        output=tmp_path / "train.jsonl",
        model=str(BASE),
        heldout=str(tmp_path / "heldout.jsonl"),
        num=60,
    )
    counts = dict(curate.curate(config))
    stages = ["pool", "validity", "copies", "decontaminated", "quality", "difficulty", "diversity"]
    assert list(counts) == stages and counts["pool"] == 400 and counts["diversity"] == 60
    assert all(counts[a] > counts[b] for a, b in itertools.pairwise(stages))
    assert all(stage in caplog.text for stage in stages)
    chosen = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert not {row["question"] for row in chosen} & {problem["question"] for problem in problems}
    rejects = [json.loads(line) for line in (tmp_path / "train.rejects.jsonl").read_text().splitlines()]
    assert Counter(reject["stage"] for reject in rejects) == {
        b: counts[a] - counts[b] for a, b in itertools.pairwise(stages)
    }
    assert all(reject["reason"] for reject in rejects)
    # Every row of the pool is in one of the two files, those that were merely not drawn included.
    not_drawn = {reject["id"] for reject in rejects if reject["reason"] == "not drawn"}
    assert len(not_drawn) == counts["difficulty"] - 60 and not not_drawn & {row["id"] for row in chosen}
    again = replace(config, output=tmp_path / "again.jsonl")
    curate.curate(again)
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "train.jsonl").read_text()
