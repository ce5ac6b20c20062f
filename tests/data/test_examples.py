"""Training rows: reading, rejecting and tokenising them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from s1jax.data.chat import ChatFormat
from s1jax.data.examples import DataConfig, encode_rows
from s1jax.data.rows import read_rows, write_rejects
from s1jax.model.config import ModelConfig
from tests.support.tokenizers import byte_tokenizer
from tests.support.training import ROW, make_examples


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Reading


def test_own_columns_load_as_they_are(tmp_path):
    assert read_rows(write_jsonl(tmp_path / "rows.jsonl", [ROW])) == ([ROW], [])


def test_published_columns_load(tmp_path):
    common = {"question": "q", "solution": 4, "source_type": "s", "cot_type": "d", "metadata": {"x": 1}}
    gemini = {"gemini_thinking_trajectory": "wrong", "gemini_attempt": "wrong"}
    s1k = {**common, "thinking_trajectories": ["t", "u"], "attempt": "a", **gemini}
    s1k_1_1 = {**common, **gemini, "deepseek_thinking_trajectory": "t\nu", "deepseek_attempt": "a"}
    rows, rejects = read_rows(write_jsonl(tmp_path / "rows.jsonl", [s1k, s1k_1_1]))
    question_hash = "8e35c2cd3bf6641b"  # printf q | sha256sum
    assert rows == [{**ROW, "id": question_hash, "thinking": "t\nu"}] * 2
    assert not rejects


def test_published_rows_with_real_traces_load(shared):
    rows, rejects = read_rows(str(shared / "data" / "s1k_rows_with_traces.jsonl"))
    questions = map(json.loads, (shared / "data" / "s1k_questions.jsonl").read_text().splitlines())
    hashes = {row["question"]: row["question_hash"] for row in questions}
    listed = [row for row in rows if row["question"] in hashes]
    assert len(rows) == 5 and not rejects
    assert len(listed) == 3 and all(row["id"] == hashes[row["question"]] for row in listed)
    assert all(len(row["thinking"]) > 5000 and row["reference"] and row["domain"] == "math" for row in rows)


def test_parquet_directory_and_hub_give_the_same_rows(tmp_path, monkeypatch):
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"question": f"q{i}", "thinking_trajectories": ["t", "u"], "attempt": "a", "solution": None} for i in range(3)
    ]
    expected = read_rows(write_jsonl(tmp_path / "1.jsonl", rows))[0]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "2.parquet")
    (tmp_path / "README.md").write_text("not data")
    assert read_rows(str(tmp_path / "2.parquet"))[0] == expected
    assert read_rows(str(tmp_path))[0] == expected * 2

    hub = {("someone/rows", "train"): datasets.Dataset.from_list(rows)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: hub[name, split])
    assert read_rows("someone/rows")[0] == expected


def test_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path):
    for i in (3, 1, 5, 0, 4, 2):
        write_jsonl(tmp_path / f"{i}.jsonl", [{**ROW, "id": str(i)}])
    assert [row["id"] for row in read_rows(str(tmp_path))[0]] == ["0", "1", "2", "3", "4", "5"]


def test_bad_rows_are_rejected_with_reason_and_place(tmp_path):
    bad = [
        '{"question": "torn',
        "[1]",
        "[" * 100_000,
        b'{"question": "\xff"}',
        json.dumps({"question": "q", "solution": "4"}),
        json.dumps({**ROW, "question": " "}),
        json.dumps({**ROW, "thinking": []}),
        json.dumps({**ROW, "answer": None}),
        json.dumps({**ROW, "thinking": ["a", 1]}),
        json.dumps({**ROW, "question": {"text": "q"}}),
        json.dumps({**ROW, "answer": "\ud800"}),
        "\n",
    ]
    lines = [json.dumps(ROW), *bad, json.dumps({**ROW, "question": "line\u2028separator"})]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    rows, rejects = read_rows(str(path))
    assert [row["question"] for row in rows] == ["q", "line\u2028separator"]
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [
        (2, "not a JSON object"),
        (3, "not a JSON object"),
        (4, "not a JSON object"),
        (5, "not a JSON object"),
        (6, "it has neither the columns thinking and answer nor those of s1K or s1K-1.1"),
        (7, "question is empty"),
        (8, "thinking is empty"),
        (9, "answer is empty"),
        (10, "thinking is not text"),
        (11, "question is not text"),
        (12, "answer is not valid Unicode"),
    ]
    assert rejects[0]["text"].strip() == bad[0] and rejects[4]["solution"] == "4"
    assert all(reject["file"] == str(path) for reject in rejects)

    out = tmp_path / "new" / "rejects.jsonl"
    write_rejects(out, rejects)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rejects
    write_rejects(out, [])
    assert out.read_text() == "" and list(out.parent.iterdir()) == [out]


def test_source_without_rows_is_one_error(tmp_path):
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no usable training row: it is empty"):
        read_rows(empty)
    useless = write_jsonl(
        tmp_path / "useless.jsonl", [{**ROW, "answer": ""}, {**ROW, "answer": ""}, {**ROW, "thinking": ""}]
    )
    with pytest.raises(ValueError, match=r"useless\.jsonl .*: answer is empty \(2 x\); thinking is empty \(1 x\)"):
        read_rows(useless)


def test_missing_and_unknown_sources_are_one_error(tmp_path):
    (tmp_path / "rows.csv").write_text("question\n")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "none").mkdir()
    for source, error, message in (
        (str(tmp_path / "no.jsonl"), FileNotFoundError, r"no file .*no\.jsonl"),
        ("no.parquet", FileNotFoundError, r"no file no\.parquet"),
        (str(tmp_path / "no"), FileNotFoundError, "no file"),
        (str(tmp_path / "none"), FileNotFoundError, "holds no .jsonl or .parquet"),
        (str(tmp_path / "rows.csv"), ValueError, r"rows\.csv is neither"),
        (str(tmp_path / "torn.parquet"), ValueError, r"torn\.parquet cannot be read as Parquet"),
        ("someone/no-such-rows", FileNotFoundError, "no file or directory someone/no-such-rows, and the hub"),
        ("", ValueError, "source is empty"),
    ):
        with pytest.raises(error, match=message):
            read_rows(source)


# Tokenising


def test_encoded_rows_are_the_examples_in_order():
    chat = ChatFormat.of(byte_tokenizer())
    rows = [{**ROW, "id": str(i), "thinking": "t" * (i + 1)} for i in range(3)]
    examples, rejects = encode_rows(rows, chat, DataConfig("rows"))
    assert len(examples) == 3 and not rejects and examples.num_truncated == 0 and examples.row_ids == ("0", "1", "2")
    for i, row in enumerate(rows):
        ids, mask = chat.encode_example(row["question"], row["thinking"], row["answer"])
        assert examples[i][0].tolist() == ids and examples[i][1].tolist() == mask
        assert examples.lengths[i] == len(ids)


def test_too_long_examples_are_one_error_that_names_them():
    rows = [{**ROW, "id": f"row-{i}", "thinking": "t" * (i * 10 + 1)} for i in range(14)]
    chat = ChatFormat.of(byte_tokenizer())
    lengths = encode_rows(rows, chat, DataConfig("rows"))[0].lengths
    with pytest.raises(ValueError) as error:
        encode_rows(rows, chat, DataConfig("rows", max_length=int(lengths[1])))
    message = str(error.value)
    assert message.startswith(
        f"12 of 14 examples are longer than max_length {lengths[1]}, the longest has {lengths[-1]} tokens"
    )
    assert "row-2 (row 2), row-3 (row 3)" in message and "row-11 (row 11) and 2 more" in message
    assert f"Raise max_length to {lengths[-1]}" in message


def test_truncation_is_counted_and_leaves_no_example_without_loss():
    chat = ChatFormat.of(byte_tokenizer())
    rows = [ROW, {**ROW, "thinking": "t" * 50}, {**ROW, "question": "q" * 200}]
    length = len(chat.encode_example("q", "t", "a")[0])
    config = DataConfig("rows", max_length=length, too_long="truncate")
    examples, rejects = encode_rows(rows, chat, config)
    assert examples.lengths.tolist() == [length, length] and examples.num_truncated == 1
    assert [(reject["row"], reject["question"]) for reject in rejects] == [(2, "q" * 200)]
    assert "no token to train on is left" in rejects[0]["reason"]

    answers = DataConfig("rows", max_length=length, too_long="truncate", loss_on="answer")
    examples, rejects = encode_rows(rows, chat, answers)
    assert len(examples) == 1 and examples.num_truncated == 0 and [reject["row"] for reject in rejects] == [1, 2]
    with pytest.raises(
        ValueError, match=r"no example is left of the 1 rows of rows: cut to max_length .* raise max_length"
    ):
        encode_rows(rows[2:], chat, answers)
    with pytest.raises(ValueError, match="no example is left of the 0 rows"):
        encode_rows([], chat, answers)


def test_config_refuses_values_it_does_not_know():
    for change, message in (
        ({"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"rows_per_micro_batch": 0}, "rows_per_micro_batch is 0: it must be at least 1"),
        ({"row_length": 1}, "row_length is 1: it must be at least 2"),
        ({"num_row_lengths": 6}, "num_row_lengths is 6: it must be at most 5"),
        ({"too_long": "cut"}, "too_long is 'cut': choose one of error, truncate"),
        ({"loss_on": "trace"}, "loss_on is 'trace': choose one of reasoning_and_answer, answer"),
        ({"loss_average": "mean"}, "loss_average is 'mean': choose one of sequence, token"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig("rows", **change)


# Fit


def test_examples_a_model_cannot_take_are_refused():
    examples = make_examples([3, 9, 5])

    def model(**changes):
        return ModelConfig.from_hf(
            dict(model_type="qwen2", vocab_size=2006, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                 num_attention_heads=1, max_position_embeddings=9) | changes
        )  # fmt: skip

    examples.check_fit(model())
    with pytest.raises(ValueError, match="gives token id 2005, but the model's vocab_size is 2005"):
        examples.check_fit(model(vocab_size=2005))
    with pytest.raises(ValueError, match=r"example 1 has 9 tokens, but the model's context is 8: .* max_length to 8"):
        examples.check_fit(model(max_position_embeddings=8))
    yarn = {"rope_type": "yarn", "factor": 2.25, "original_max_position_embeddings": 4}
    assert model(max_position_embeddings=8, rope_scaling=yarn).context_length == 9
    examples.check_fit(model(max_position_embeddings=8, rope_scaling=yarn))


@pytest.mark.parametrize("changed", ["tokens", "loss_mask", "offsets", "pad"])
def test_the_fingerprint_of_examples_changes_with_all_that_is_trained_on(changed):
    examples = make_examples([3, 5])
    assert examples.fingerprint == make_examples([3, 5]).fingerprint
    value = np.copy(getattr(examples, changed))
    value.flat[1 if value.ndim else 0] ^= True
    assert replace(examples, **{changed: value}).fingerprint != examples.fingerprint
