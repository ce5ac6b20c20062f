"""`traces.py`: rows without a trace get one of a model's own, from an endpoint or from our engine, if its answer agrees."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import pytest

from data_tools.curation.attempts import attempt_of_sample, choose
from data_tools.curation.traces import TracesConfig, stage
from data_tools.curation.workers import Workers
from s1jax.data.condition import Condition
from s1jax.results.samples import read_samples
from s1jax.runtime.endpoint import EndpointLimits
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import MeshConfig
from tests.support.curation import pool_of, verdicts_of
from tests.support.quickstart import BASE, rows_of

QUICK = EndpointLimits(max_concurrent=4, timeout_seconds=20, max_tries=2)


def sums(n, **columns):
    """Rows `i + i` without a trace."""
    return [{"id": f"{i:016x}", "question": f"{i} + {i}?", "reference": str(2 * i)} | columns for i in range(n)]


def solve(body):
    return str(2 * int(body["messages"][-1]["content"].split()[0]))


def condition_of(**changes):
    return Condition(**dict(max_thinking_tokens=16384, max_answer_tokens=2048, temperature=1.0) | changes)


def config_for(server, condition=None, **changes):
    condition = condition or condition_of()
    return TracesConfig(endpoint=server.url, endpoint_model="m", limits=QUICK, condition=condition, **changes)


def calls_of(server):
    return Counter((body["messages"][-1]["content"], body["seed"]) for *_, body in server.requests)


def run(config, rows, folder, **options):
    return verdicts_of(stage(config, folder / "calls"), pool_of(folder, rows, **options), folder)


def test_rows_with_a_trace_stay_as_they_are_and_the_others_get_one(serve, tmp_path):
    server = serve(lambda body: {"content": rf"\boxed{{{solve(body)}}}", "reasoning_content": "I add."})
    rows = [
        row | {"thinking": "Mine.", "answer": "wrong"} if i % 3 else row | {"thinking": " \n"}
        for i, row in enumerate(sums(7))
    ]
    _, verdicts = run(config_for(server), rows, tmp_path)
    for i, verdict in enumerate(verdicts):
        new = {"thinking": "I add.", "answer": rf"\boxed{{{2 * i}}}", "correct": True}
        old = {"thinking": "Mine.", "answer": "wrong", "correct": None}
        assert verdict == {"row": i, "reason": None, "detail": None} | (old if i % 3 else new)
    assert calls_of(server) == Counter({(f"{i} + {i}?", seed): 1 for i in (0, 3, 6) for seed in range(4)})
    _, replaced = run(config_for(server, replace=True), rows, tmp_path)
    assert all(verdict["thinking"] == "I add." for verdict in replaced) and len(server.requests) == 28


def test_if_no_row_needs_a_trace_nobody_is_asked_and_no_text_is_copied(serve, tmp_path):
    server = serve(solve)
    rows = [row | {"thinking": "t", "answer": "a"} for row in sums(4)]
    result, verdicts = run(config_for(server), rows, tmp_path)
    assert not server.requests
    assert result.columns == {"correct"}
    assert verdicts == [{"row": i, "reason": None, "detail": None, "correct": None} for i in range(4)]


@pytest.mark.integration
def test_worker_processes_give_the_same_verdicts_as_one_process(serve, tmp_path):
    server, rows = serve(lambda body: solve(body) if body["seed"] else "7"), sums(9)
    _, verdicts = run(config_for(server), rows, tmp_path)
    (tmp_path / "b").mkdir()
    with Workers(num_processes=2) as workers:
        assert run(config_for(server), rows, tmp_path / "b", workers=workers)[1] == verdicts


def test_the_first_sample_that_agrees_is_kept(serve, tmp_path):
    def reply(body):
        # Sample k of question i is right from k = i on.
        right = body["seed"] >= int(body["messages"][-1]["content"].split()[0])
        return {"content": f"Answer: {solve(body) if right else 'x'}", "reasoning": f"sample {body['seed']}"}

    _, verdicts = run(config_for(serve(reply)), sums(6), tmp_path)
    assert [verdict["thinking"] for verdict in verdicts] == ["sample 0", "sample 1", "sample 2", "sample 3", "", ""]
    assert [(v["reason"], v["detail"], v["correct"]) for v in verdicts[4:]] == [
        ("no sample agrees with the reference", "0 of 4", None)
    ] * 2


def test_a_request_holds_prompts_limits_and_the_seed_of_its_sample(serve, tmp_path):
    server = serve(solve)
    config = config_for(
        server, condition_of(prompt_suffix="Box it.", system_prompt="Be brief.", top_p=0.9), num_samples=2, seed=5
    )
    _, (verdict,) = run(config, sums(2)[1:], tmp_path)
    assert (verdict["thinking"], verdict["answer"]) == ("2", "Final Answer: 2")
    bodies = sorted((body for *_, body in server.requests), key=lambda body: body["seed"])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?\n\nBox it."},
    ]
    assert bodies == [
        dict(model="m", messages=messages, temperature=1.0, top_p=0.9, max_tokens=16384 + 2048, seed=seed)
        for seed in (5, 6)
    ]


def test_rows_without_a_trace_to_keep_are_rejected_with_a_reason(serve, tmp_path):
    def reply(body):
        question = body["messages"][-1]["content"]
        if question.startswith("1 "):
            return {"content": "2", "finish_reason": "length"}
        return 400 if question.startswith("2 ") else "" if question.startswith("3 ") else "77"

    rows = [row | {"reference": " "} if i == 0 else row for i, row in enumerate(sums(5))]
    result, verdicts = run(config_for(serve(reply)), rows, tmp_path)
    assert [(v["reason"], v["detail"]) for v in verdicts] == [
        ("no reference to verify traces against", None),
        ("no sample ends in time", "0 of 4"),
        ("the endpoint did not answer", "HTTP 400 Bad Request"),
        ("the endpoint did not answer", "its reply is empty"),
        ("no sample agrees with the reference", "0 of 4"),
    ]
    assert result.summary["num_kept"] == 0 and not any(v["thinking"] or v["answer"] for v in verdicts)


def test_the_next_run_asks_again_for_what_failed_and_for_nothing_else(serve, tmp_path):
    broken, rows = {"2 + 2?"}, sums(5)
    server = serve(lambda body: 500 if body["messages"][-1]["content"] in broken else solve(body))
    config = config_for(server, num_samples=1)
    with pytest.raises(
        UserError, match=r"did not answer: HTTP 500 .* \(1 of 5 questions wait; run the same command again"
    ):
        run(config, rows, tmp_path)
    assert not list(tmp_path.glob("traces-*"))
    broken.clear()
    server.requests.clear()
    _, verdicts = run(config, rows, tmp_path)
    assert not any(verdict["reason"] for verdict in verdicts)
    assert calls_of(server) == {("2 + 2?", 0): 1}


def test_a_row_that_the_model_does_not_take_is_no_reason_to_run_again(serve, tmp_path):
    server = serve(lambda body: 400 if body["messages"][-1]["content"] == "2 + 2?" else solve(body))
    (first, _), (second, _) = (run(config_for(server, num_samples=1), sums(5), tmp_path) for _ in range(2))
    assert first.folder == second.folder and len(server.requests) == 5


def test_another_pool_of_the_same_questions_asks_nothing_again(serve, tmp_path):
    server, rows = serve(solve), sums(6)
    run(config_for(server), rows, tmp_path)
    server.requests.clear()
    _, verdicts = run(config_for(server), [row | {"source": "new"} for row in rows[::-2]], tmp_path)
    assert not server.requests and [v["answer"] for v in verdicts] == [f"Final Answer: {2 * i}" for i in (5, 3, 1)]
    run(config_for(server), [*rows, rows[0]], tmp_path)
    assert not server.requests


def test_a_wrong_address_stops_with_one_error_and_leaves_no_result(tmp_path):
    config = TracesConfig(endpoint="http://127.0.0.1:1/v1", endpoint_model="m", limits=replace(QUICK, max_tries=1))
    with pytest.raises(UserError, match=r"the endpoint at http://127\.0\.0\.1:1/v1 did not answer: .*refused"):
        run(config, sums(9), tmp_path)
    assert not list(tmp_path.glob("traces-*"))


def test_the_key_of_a_result_depends_on_what_can_change_it_alone(tmp_path):
    def key(**changes):
        defaults = dict(endpoint="http://a", endpoint_model="m", condition=condition_of())
        return stage(TracesConfig(**defaults | changes), tmp_path).key("")

    base = key()
    mesh = MeshConfig(data=1)
    assert {key(endpoint="http://b"), key(limits=QUICK), key(num_rows=1), key(mesh=mesh)} == {base}
    changed = [
        dict(endpoint_model="n"), dict(replace=True), dict(num_samples=2), dict(seed=1),
        *(
            dict(condition=condition_of(**{name: value}))
            for name, value in dict(
                temperature=0.1, max_thinking_tokens=5, top_p=0.5, prompt_suffix="x", system_prompt="x"
            ).items()
        ),
        dict(verify=False),
        dict(endpoint="", endpoint_model="", model=str(BASE),
             condition=condition_of(max_thinking_tokens=8, max_answer_tokens=8)),
    ]  # fmt: skip
    assert len({base, *(key(**changes) for changes in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="a", endpoint="http://b", endpoint_model="m"), "both a model and an endpoint"),
        (dict(endpoint="http://b"), "belong together"),
        (
            dict(endpoint="http://b", endpoint_model="m", condition=condition_of(num_ignore=1)),
            "num_ignore has no effect with an endpoint",
        ),
        (dict(condition=condition_of(temperature=0.0)), "num_samples 4 at temperature 0"),
        (dict(num_samples=0), "num_samples is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        TracesConfig(**changes)


def test_the_stage_needs_a_model_or_an_endpoint(tmp_path):
    with pytest.raises(UserError, match=r"the stage traces needs --traces\.model or --traces\.endpoint"):
        stage(TracesConfig(), tmp_path)


def test_a_budget_that_leaves_no_room_for_a_question_is_refused(tmp_path):
    with pytest.raises(UserError, match="leave no room for a question in the model's context of 1024 tokens"):
        stage(
            TracesConfig(model=str(BASE), condition=condition_of(max_thinking_tokens=1000, max_answer_tokens=16)),
            tmp_path,
        )


ENGINE = TracesConfig(
    model=str(BASE),
    condition=Condition(48, max_answer_tokens=16, temperature=1e-4, dtype="float32"),  # nearly greedy
    num_rows=8,
)


def story_rows():
    """Seven rows without a trace."""
    return [row | {"thinking": "", "answer": ""} for row in rows_of(7, num_steps=1)]


@pytest.mark.integration
def test_our_engine_s_first_sample_that_agrees_is_kept(tmp_path, grader):
    rows = story_rows()
    _, written = run(replace(ENGINE, num_samples=1, verify=False), rows, tmp_path / "before")
    assert sum(verdict["reason"] is None for verdict in written) > 3, "most answers end in time"
    # The model has not learned to think. The references of the first rows become what it answers, right or wrong.
    rows[:4] = [
        row | {"reference": verdict["answer"] or row["reference"]}
        for row, verdict in zip(rows[:4], written, strict=False)
    ]
    rows += [
        rows[0] | {"question": "How much? " * 500},
        rows[0] | {"question": "How much?", "reference": ""},
        rows[0] | {"question": "How many?", "thinking": "Mine.", "answer": "mine"},
    ]
    _, verdicts = run(ENGINE, rows, tmp_path)
    samples = sorted(read_samples(tmp_path / "calls" / "traces-samples.jsonl"), key=lambda row: row["sample_index"])
    lines = map(json.loads, (tmp_path / "calls" / "traces-problems.jsonl").read_text().splitlines())
    ids = {line["question"]: line["id"] for line in lines}
    assert len(samples) == 4 * 7 and ids.keys() == {row["question"] for row in rows[:7]}
    for row, verdict in zip(rows[:7], verdicts, strict=False):
        mine = [sample for sample in samples if sample["problem_id"] == ids[row["question"]]]
        chosen, reason, detail = choose(map(attempt_of_sample, mine), row["reference"], grader)
        assert (verdict["reason"], verdict["detail"]) == (reason, detail)
        assert chosen is None or (verdict["thinking"], verdict["answer"]) == chosen[:2]
    solved = [verdict["correct"] for verdict in verdicts[:4] if verdict["reason"] is None]
    assert solved == [True] * sum(verdict["reason"] is None for verdict in written[:4]) and solved
    long, unknown, kept = verdicts[7:]
    assert long["reason"] == "the question is too long for the model" and "there is room for 8" in long["detail"]
    assert unknown["reason"] == "no reference to verify traces against"
    assert (kept["reason"], kept["thinking"], kept["correct"]) == (None, "Mine.", None)


def command_of(config, rows, folder):
    """The arguments of python that run the stage."""
    text = f"""
import pickle
from data_tools.curation.traces import stage
from tests.support.curation import pool_of, verdicts_of
config, rows, folder = pickle.loads({pickle.dumps((config, rows, folder))!r})
verdicts_of(stage(config, folder / "calls"), pool_of(folder, rows), folder)
"""
    (folder / "run.py").write_text(text)
    return (folder / "run.py",)


def without_order(file):
    return sorted(file.read_text().splitlines())


@pytest.mark.integration
def test_a_stage_that_was_killed_decodes_no_row_again_and_has_the_same_result(tmp_path, processes):
    rows, config = story_rows()[2:], replace(ENGINE, num_rows=1, num_samples=2)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    samples = killed / "calls" / "traces-samples.jsonl"
    num_lines = processes.kill_after_a_row(*command_of(config, rows, killed), output=samples)
    assert 0 < num_lines < 10 and not list(killed.glob("traces-*"))
    before = samples.read_text().splitlines()[:num_lines]
    _, verdicts = run(config, rows, killed)
    assert samples.read_text().splitlines()[:num_lines] == before
    assert verdicts == run(config, rows, whole)[1]
    assert without_order(samples) == without_order(whole / "calls" / "traces-samples.jsonl")


@pytest.mark.integration
def test_a_stage_that_was_killed_repeats_no_answered_call(serve, tmp_path, processes):
    server, rows = serve(solve), sums(100)
    config = config_for(server)
    replies = tmp_path / "calls" / "traces-replies.jsonl"
    num_lines = processes.kill_after_a_row(*command_of(config, rows, tmp_path), output=replies)
    assert 0 < num_lines < 400 and not list(tmp_path.glob("traces-*"))
    server.requests.clear()
    _, verdicts = run(config, rows, tmp_path)
    assert len(server.requests) == 400 - num_lines and max(calls_of(server).values()) == 1
    assert [verdict["answer"] for verdict in verdicts] == [f"Final Answer: {2 * i}" for i in range(100)]
