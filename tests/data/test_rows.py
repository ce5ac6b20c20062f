"""`rows.py`: reading rows and setting bad ones aside."""

import json
import math

import pytest

from s1jax.data.rows import read_rows
from tests.support.training import ROW


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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
    monkeypatch.setattr(datasets, "load_dataset", lambda name, subset, split: hub[name, split])
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
        (2, "not JSON: Unterminated string starting at character 14"),
        (3, "not a JSON object"),
        (4, "not JSON: brackets are nested too deeply"),
        (5, "not UTF-8: byte 15 of the line is 0xff (save the file as UTF-8)"),
        (6, "no trace is found in the columns question, solution (docs/usage.md lists the layouts)"),
        (7, "question is empty"),
        (8, "thinking is empty"),
        (9, "answer is empty"),
        (10, "thinking is not text but a list"),
        (11, "question is not text but an object"),
        (12, r"answer is not valid Unicode: character 1 is a lone surrogate ('\ud800')"),
    ]
    assert rejects[0]["text"].strip() == bad[0] and rejects[4]["solution"] == "4"
    assert all(reject["file"] == str(path) for reject in rejects)


def test_a_label_is_read_and_a_row_without_one_has_no_columns_for_it(tmp_path):
    label = {"method": "token_conditional", "requested": 64}
    steps = {**ROW, "thinking": "a\n\nb", "method": "step_conditional", "requested": "2"}
    plain = [{**ROW, "method": method, "requested": None} for method in ("", None, "budget_forcing")]
    rows, rejects = read_rows(write_jsonl(tmp_path / "rows.jsonl", [ROW | label, steps, *plain]))
    assert rows == [{**ROW, "method": "token_conditional", "requested": "64"}, steps, ROW, ROW, ROW] and not rejects


def test_a_label_that_a_row_cannot_have_rejects_the_row(tmp_path):
    bad = [
        {"method": "chain of thought"},
        {"method": "token_conditional_forced", "requested": "8"},
        {"method": "class_conditional", "requested": "long"},
        {"method": "token_conditional"},
        {"method": "step_conditional", "requested": "many"},
        {"requested": "8"},
        {"method": 3},
        {"method": "step_conditional", "requested": "2", "thinking": "a\n\nb\n\nc"},
    ]
    rows, rejects = read_rows(write_jsonl(tmp_path / "rows.jsonl", [ROW, *(ROW | label for label in bad)]))
    assert rows == [ROW]
    known = "a training row has budget_forcing or token_conditional or step_conditional"
    assert [reject["reason"] for reject in rejects] == [
        f"method is 'chain of thought': {known}",
        f"method is 'token_conditional_forced': {known}",
        f"method is 'class_conditional': {known}",
        "requested is '': token_conditional needs a number of tokens, such as 64",
        "requested is 'many': step_conditional needs a number of steps, such as 64",
        "requested is '8': budget_forcing asks the model for nothing, so leave it out",
        "method is not text but a number",
        "requested is 2, but the trace has 3 steps",
    ]


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


def test_a_missing_value_of_a_data_frame_is_no_text_in_json_lines_and_in_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    frame = [
        {"id": 1, "question": "q", "thinking": "t", "answer": math.nan, "domain": math.nan},
        {"id": 2, "question": "q", "thinking": "t", "answer": None, "domain": None},
        {"id": 7, "question": "q", "thinking": "t", "answer": 2.5, "domain": math.nan},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(frame), tmp_path / "rows.parquet")
    for source in (write_jsonl(tmp_path / "rows.jsonl", frame), str(tmp_path / "rows.parquet")):
        rows, rejects = read_rows(source)
        assert rows == [{**ROW, "id": "7", "answer": "2.5", "reference": "", "source": "", "domain": ""}]
        assert [reject["reason"] for reject in rejects] == ["answer is NaN, a missing value", "answer is empty"]


def test_rows_of_turns_are_read_and_their_system_prompts_counted(tmp_path, caplog):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>t</think>a"}]
    row = {**ROW, "messages": turns, "system": "Be brief."}
    del row["question"], row["thinking"], row["answer"]
    assert read_rows(write_jsonl(tmp_path / "rows.jsonl", [row, row, row | {"system": None}])) == ([ROW] * 3, [])
    assert "rows.jsonl: 2 rows with a system prompt: it is left out" in caplog.text
