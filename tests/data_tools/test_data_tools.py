"""The quickstart's world: generated problems and traces, the curation stages, the pretraining texts, the committed base model."""

import itertools
import json
import logging
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.curation import curate
from data_tools.quickstart.arithmetic import (
    DEFECTS,
    LABELS,
    MAX_STEPS,
    STORIES,
    make_heldout,
    make_pool,
    make_problem,
    to_row,
)
from data_tools.quickstart.tiny_texts import make_text
from s1jax.runtime import jsonl

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "data_tools" / "quickstart" / "tiny_base"
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


def compute(before, operation, operand):
    before, operand = int(before), int(operand)
    return {"+": before + operand, "-": before - operand, "*": before * operand, "/": before / operand}[operation]


def rows_of(n, seed=0, num_steps=None):
    rng = random.Random(seed)
    return [to_row(make_problem(rng, num_steps or i % MAX_STEPS + 1), rng) for i in range(n)]


# -- problems and traces


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


# -- curation stages


REASONS = dict(
    no_trace="thinking is empty",
    no_question="question is empty",
    no_reference="no reference to grade against",
    wrong_answer="the answer disagrees with the reference",
    cut_trace="the trace does not reach the answer",
    image="refers to an image",
    torn_bold="torn bold markup",
)


@pytest.mark.parametrize("name", DEFECTS)
def test_every_kind_of_defect_is_found_and_named(name, tmp_path):
    rng = random.Random(7)
    good = rows_of(2)
    spoilt = [DEFECTS[name](row, rng) for row in rows_of(30, seed=8, num_steps=5)]
    jsonl.write(tmp_path / "pool.jsonl", good + spoilt)
    rows, rejects = curate.read_rows(str(tmp_path / "pool.jsonl"))
    kept = [row for row in rows if curate.quality_reason(row) is None]
    assert [row["id"] for row in kept[:2]] == [row["id"] for row in good]
    # A cut trace that by chance still names the answer is not found out.
    assert len(kept) <= (5 if name == "cut_trace" else 2)
    assert len(rows) + len(rejects) == 32
    assert {reject["reason"] for reject in rejects} | {curate.quality_reason(row) for row in rows} == {
        None,
        REASONS[name],
    }


def test_no_clean_row_is_turned_away_for_its_quality():
    assert not any(curate.quality_reason(row) for row in rows_of(400, seed=9))


def test_of_copies_one_is_kept_whatever_their_order():
    rows = rows_of(20)
    copies = [*rows, *[row | {"thinking": row["thinking"] + " "} for row in rows[:5]], *rows[3:8]]
    copies += [row | {"question": row["question"].upper(), "thinking": "Z"} for row in rows[10:12]]
    kept = []
    for order in (copies, copies[::-1]):
        reason = curate.first_of_copies(order)
        kept.append([row for row in order if reason(row) is None])
    by_id = [sorted(rows, key=lambda row: row["id"]) for rows in kept]
    assert by_id[0] == by_id[1] and len(by_id[0]) == 20


def test_eight_shared_words_contaminate_whatever_their_case_and_spacing_but_seven_do_not():
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    decontaminator = curate.Decontaminator([" ".join(["start", *words, "end"])], 8)

    def reason(question):
        return decontaminator.reason({"question": question})

    assert reason("Other ONE  two three\nfour five six seven eight words here")
    assert not reason("other one two three four five six seven nine words here")
    assert not reason("other one two three four five six seven eight, words here")
    assert reason("one two three four five six seven eight")
    assert not reason("two three four five six seven eight")


def test_a_held_out_question_is_found_even_if_it_is_shorter_than_the_run():
    problem = make_heldout(1, 0)[0]
    assert len(problem.question.split()) < 28
    decontaminator = curate.Decontaminator([problem.question], 28)
    assert decontaminator.reason({"question": problem.question.upper().replace(" ", "  ")}) == "is a held-out question"


def test_diversity_draws_domains_evenly_and_long_traces_first():
    rows = [
        {"id": f"{domain}{i}", "domain": domain}
        for domain, n in (("many", 400), ("few", 100), ("two", 2))
        for i in range(n)
    ]
    lengths = {row["id"]: int(re.search(r"\d+", row["id"]).group()) for row in rows}
    chosen = curate.draw_diverse(rows, lengths, 62, seed=0)
    counts = Counter(row["domain"] for row in chosen)
    assert counts["two"] == 2 and abs(counts["many"] - counts["few"]) < 25
    assert len({row["id"] for row in chosen}) == 62
    assert min(lengths[row["id"]] for row in chosen if row["domain"] == "many") > 350


def test_the_longest_trace_of_a_domain_is_drawn_first_half_the_time_and_each_next_one_half_as_often():
    rows = [{"id": str(i), "domain": "d"} for i in range(5)]
    lengths = {str(i): 10 - i for i in range(5)}
    first = Counter(curate.draw_diverse(rows, lengths, 1, seed)[0]["id"] for seed in range(4000))
    share = np.array([first[str(i)] / 4000 for i in range(5)])
    assert np.abs(share - 2.0 ** -np.arange(5) / 1.9375).max() < 0.03


def test_the_draw_is_a_function_of_the_seed_and_not_of_the_order_of_the_rows():
    rows = rows_of(200)
    lengths = {row["id"]: len(row["thinking"]) for row in rows}
    chosen = curate.draw_diverse(rows, lengths, 50, seed=3)
    assert chosen == curate.draw_diverse(rows[::-1], lengths, 50, seed=3)
    assert chosen != curate.draw_diverse(rows, lengths, 50, seed=4)


def test_drawing_more_rows_than_there_are_is_refused():
    with pytest.raises(ValueError, match="only 5 rows are left to draw 6 from"):
        curate.draw_diverse(rows_of(5), {row["id"]: 1 for row in rows_of(5)}, 6, seed=0)


# -- the base model


def test_no_pretraining_text_shows_the_format_that_fine_tuning_teaches():
    text = "".join(piece for i in range(2000) for piece, _ in make_text(0, i))
    assert not re.search(r"Wait|<\|im_start\|>(think|answer)", text)
    assert not re.search(r"^\w+ [A-H]: [^\n]*=\d+\n\w+ [A-H]: ", text, re.MULTILINE)


def test_pretraining_texts_state_only_right_sums_unless_they_say_so():
    wrong = 0
    for i in range(2000):
        text = "".join(piece for piece, _ in make_text(0, i))
        for match in re.finditer(r"(\d+)([-+*/])(\d+)=(\d+)( is wrong)?", text):
            if compute(*match.group(1, 2, 3)) != int(match[4]):
                wrong += 1
                assert match[5] or f", not {match[4]}" in text[match.end() :]
            else:
                assert not match[5]
    assert wrong > 100


@pytest.fixture(scope="module")
def base():
    from s1jax.checkpoint.source import resolve_source
    from s1jax.decode.load import load_engine

    return load_engine(resolve_source(BASE), dtype="float32")


def test_the_committed_base_has_the_shape_its_config_says():
    from configs.tiny_base import CONFIG
    from s1jax.checkpoint.source import resolve_source

    assert resolve_source(BASE).model_config("float32") == CONFIG.model
    assert (BASE / "model.safetensors").stat().st_size < 6_000_000


@pytest.mark.integration
def test_transformers_computes_the_committed_base_the_same(base):
    import torch
    from transformers import AutoModelForCausalLM

    from tests.support.decoding import make_request

    engine, chat = base
    prompt = chat.encode_chat(make_heldout(1, 0)[0].question)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=8)[0, len(prompt) :].tolist()
    ours = list(engine.decode([make_request(tuple(prompt), max_answer_tokens=8, thinks=False)])[0].tokens)
    assert theirs[: len(ours)] == ours


def test_the_base_tokenizer_has_short_delimiters_single_digits_and_room_in_the_vocabulary(base):
    engine, chat = base
    assert len(chat.delimiters.think) == len(chat.delimiters.answer) == 2 and len(chat.encode_text("Wait")) == 1
    assert len(chat.encode_text("12345")) == 5
    assert len(chat.tokenizer) < engine.model.config.vocab_size


@pytest.mark.integration
def test_what_the_difficulty_stage_drops_is_what_the_base_answers_rightly(base):
    engine, chat = base
    rows = rows_of(96, seed=11, num_steps=1)
    solved = curate.solved_by(engine, chat, rows, max_answer_tokens=8, num_rows=96)
    wrong_references = [row | {"reference": "1000"} for row in rows]
    assert 24 < sum(solved) < 72
    assert not any(curate.solved_by(engine, chat, wrong_references, max_answer_tokens=8, num_rows=96))


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
