"""`domains.py`: which domain a question belongs to."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data_tools.curation import domains
from data_tools.curation.domains import INSTRUCTION, DomainsConfig, named_label, stage, to_prompt
from data_tools.curation.taxonomy import Label, read_taxonomy
from s1jax.decode.engine import Engine
from s1jax.decode.score import Scores
from s1jax.runtime import jsonl
from s1jax.runtime.endpoint import EndpointLimits
from tests.support.curation import pool_of, verdicts_of
from tests.support.quickstart import BASE, rows_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = ["Adding", "Taking away from what is there", "Sharing", "7"]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "fields.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return DomainsConfig(model=str(BASE), taxonomy=str(tmp_path / "fields.txt"), dtype="float32")


@pytest.fixture
def pool():
    return [{"question": row["question"], "domain": "old"} for row in rows_of(6, seed=3)]


def scores_by_transformers(directory, questions, names):
    """The scores of all names by the definition, from Hugging Face's model, one text at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)

    def log_likelihood(content, name):
        turn = [{"role": "user", "content": content}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=True)
        prompt, ids = prompt["input_ids"], tokenizer.encode(name, add_special_tokens=False)
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(ids))

    alone = [log_likelihood(INSTRUCTION, name) for name in names]
    return [
        [
            log_likelihood(f"{question}\n\n{INSTRUCTION}", name) - before
            for name, before in zip(names, alone, strict=True)
        ]
        for question in questions
    ]


def check_against_transformers(config, questions, tmp_path, tolerance):
    names = [label.name for label in read_taxonomy(config.taxonomy)]
    _, found = verdicts_of(
        stage(config, tmp_path / "calls"), pool_of(tmp_path, [{"question": q} for q in questions]), tmp_path
    )
    expected = scores_by_transformers(config.model, questions, names)
    rows = [row for _, row in jsonl.read(tmp_path / "calls" / "domains.jsonl")]
    np.testing.assert_allclose([row["scores"] for row in rows], expected, rtol=0, atol=tolerance)
    best = np.sort(expected, axis=1)
    assert (best[:, -1] - best[:, -2] > 2 * tolerance).all()  # so that rounding decides nothing
    assert [row["domain"] for row in found] == [names[i] for i in np.argmax(expected, axis=1)]
    assert len({row["domain"] for row in found}) > 1
    assert all(row["reason"] is row["detail"] is None for row in found)


@pytest.mark.integration
def test_the_domain_is_the_label_with_the_largest_pointwise_mutual_information(config, pool, tmp_path):
    check_against_transformers(config, [row["question"] for row in pool], tmp_path, 1e-3)


@pytest.mark.slow
def test_a_real_model_scores_fields_of_the_msc_as_transformers_does(real_model, shared, tmp_path):
    lines = (shared / "data" / "math500.jsonl").read_text().splitlines()
    questions = [json.loads(lines[i])["question"] for i in (0, 3, 24)]
    names = [label.name for label in read_taxonomy("msc")][::5]
    (tmp_path / "fields.txt").write_text("\n".join(names))
    config = DomainsConfig(model=str(real_model), dtype="float32", taxonomy=str(tmp_path / "fields.txt"))
    check_against_transformers(config, questions, tmp_path, 2e-3)


@pytest.mark.integration
def test_a_killed_stage_goes_on_and_scores_no_question_twice(config, pool, tmp_path, monkeypatch):
    pool = [*pool, pool[2]]  # an equal question is scored once
    result, first = verdicts_of(stage(config, tmp_path / "a"), pool_of(tmp_path / "1", pool), tmp_path / "1")
    whole = (tmp_path / "a" / "domains.jsonl").read_bytes()
    assert len(whole.splitlines()) == 6 and first[6]["domain"] == first[2]["domain"]
    lines = whole.splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "domains.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:40])  # killed while it wrote a row
    num_calls = 0
    score_all = Engine.score_all

    def count(engine, pairs):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise KeyboardInterrupt
        return score_all(engine, pairs)

    monkeypatch.setattr(Engine, "score_all", count)
    with pytest.raises(KeyboardInterrupt):
        verdicts_of(stage(config, tmp_path / "b"), pool_of(tmp_path / "2", pool), tmp_path / "2")
    assert (tmp_path / "b" / "domains.jsonl").read_bytes() == b"".join(lines[:3])
    again, second = verdicts_of(stage(config, tmp_path / "b"), pool_of(tmp_path / "2", pool), tmp_path / "2")
    assert second == first and again.summary["key"] == result.summary["key"]
    assert (tmp_path / "b" / "domains.jsonl").read_bytes() == whole
    assert num_calls == 3 + 1 + 3
    monkeypatch.setattr(domains, "load_engine", None)
    _, some = verdicts_of(stage(config, tmp_path / "b"), pool_of(tmp_path / "3", pool[3:5]), tmp_path / "3")
    assert [row["domain"] for row in some] == [row["domain"] for row in first[3:5]]


@pytest.mark.integration
def test_another_taxonomy_or_model_is_scored_anew_and_a_question_that_is_too_long_is_rejected(config, pool, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(BASE, twin)
    settings = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 200}))
    pool = [pool[0], {"question": "1 + 1? " * 60}]
    (tmp_path / "other.txt").write_text("Plus\nMinus\nTimes\nDivided by\n")
    results = []
    for number, changes in enumerate((dict(model=str(twin)), {}, dict(taxonomy=str(tmp_path / "other.txt")))):
        folder = tmp_path / str(number)
        _, found = verdicts_of(stage(replace(config, **changes), tmp_path / "calls"), pool_of(folder, pool), folder)
        results.append(found)
        assert [row["reason"] for row in found] == [None, None if number else f"the question is too long for {twin}"]
    assert results[0][1]["domain"] == "" and results[1][0]["domain"] in NAMES
    assert results[2][0]["domain"] in ("Plus", "Minus", "Times", "Divided by")
    assert len(jsonl.read(tmp_path / "calls" / "domains.jsonl")) == 1 + 2 + 2


class Flat:
    """An engine that finds all labels equally likely."""

    def __init__(self, model):
        self.model = model

    def score_all(self, pairs):
        return [Scores(np.zeros(len(name), np.float32), np.zeros(len(name), bool)) for _, name in pairs]


def test_of_labels_with_equal_scores_the_first_wins(config, pool, tmp_path, base, monkeypatch):
    engine, chat = base
    monkeypatch.setattr(domains, "load_engine", lambda *_, **__: (Flat(engine.model), chat))
    _, found = verdicts_of(stage(config, tmp_path / "calls"), pool_of(tmp_path, pool), tmp_path)
    assert {row["domain"] for row in found} == {NAMES[0]}


def test_a_file_of_other_rows_is_refused(config, pool, tmp_path):
    jsonl.write(tmp_path / "calls" / "domains.jsonl", [{"question": "mine"}])
    with pytest.raises(ValueError, match=r"domains\.jsonl: line 1 is no row of scores"):
        verdicts_of(stage(config, tmp_path / "calls"), pool_of(tmp_path, pool), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model="m", endpoint="http://localhost:1/v1", endpoint_model="e"), "give one of them"),
        (dict(endpoint="http://localhost:1/v1"), "endpoint and endpoint_model belong together"),
        (dict(endpoint_model="e"), "endpoint and endpoint_model belong together"),
        (dict(dtype="int8"), "dtype is 'int8'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DomainsConfig(**changes)


def test_a_stage_without_model_and_endpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs --domains\.model or --domains\.endpoint"):
        stage(DomainsConfig(), tmp_path)


# With an endpoint

LABELS = [Label("11", "Number theory", ("primes",)), Label("51", "Geometry"), Label("", "Convex and discrete geometry")]


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("Number theory", "Number theory"),
        ("It is about primes.\n\n**number theory.**", "Number theory"),
        ("11", "Number theory"),
        ("`51: Geometry`\n", "Geometry"),
        ("- Convex and discrete geometry", "Convex and discrete geometry"),
        ("Geometry\nIt is about triangles.", None),
        ("Geometry or number theory", None),
        ("Topology", None),
        ("", None),
        ("...", None),
    ],
)
def test_a_reply_counts_only_if_its_last_line_is_a_label(reply, name):
    label = named_label(reply, LABELS)
    assert (label and label.name) == name


def test_an_endpoint_is_asked_each_question_once_and_a_row_without_a_label_is_rejected(serve, tmp_path):
    replies = {"primes?": "Yes.\n11", "sides?": "Shapes", "too long?": 400, "{angles}?": "Geometry", "silence?": 500}
    server = serve(lambda body: replies[body["messages"][-1]["content"].rpartition("\n")[2]])
    (tmp_path / "fields.json").write_text(
        json.dumps([dict(code=label.code, name=label.name, topics=label.topics) for label in LABELS])
    )
    config = DomainsConfig(
        endpoint=server.url,
        endpoint_model="e",
        taxonomy=str(tmp_path / "fields.json"),
        limits=EndpointLimits(max_tries=1),
    )
    questions = ["primes?", "sides?", "too long?", "{angles}?", "primes?", "silence?"]
    rows = pool_of(tmp_path, [{"question": question} for question in questions])
    with pytest.raises(ValueError, match="did not answer 1 of 5 questions: run the same command again"):
        verdicts_of(stage(config, tmp_path), rows, tmp_path)
    replies["silence?"] = "Geometry"
    asked = len(server.requests)
    _, found = verdicts_of(stage(config, tmp_path), rows, tmp_path)
    assert [row["domain"] for row in found] == ["Number theory", "", "", "Geometry", "Number theory", "Geometry"]
    assert [row["reason"] for row in found] == [None, "no domain", "no domain", None, None, None]
    # What was answered is not asked again. What the model does not take has no reply to keep.
    again = {body["messages"][-1]["content"].rpartition("\n")[2] for *_, body in server.requests[asked:]}
    assert again == {"silence?", "too long?"}
    assert "- 11: Number theory (primes)\n- 51: Geometry\n- Convex and discrete geometry\n" in to_prompt("", LABELS)
