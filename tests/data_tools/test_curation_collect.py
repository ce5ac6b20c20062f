"""`collect.py`: files and datasets become one pool, and bad rows rejected rows."""

import hashlib
import json
import logging
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.curation import collect
from data_tools.curation.collect import SCHEMA, CollectConfig, stage
from data_tools.curation.stage import PART_ROWS
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import with_paths

EMPTY = dict(id="", question="", reference="", domain="", thinking="", answer="")


def write(path, *rows):
    """Write rows as JSON lines; a row of bytes as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def rows_of(*pool, **settings):
    """Return the rows of a pool, rejected ones too."""
    return [row for part in stage(CollectConfig(pool, **settings)).run(None) for row in part.to_pylist()]


def one_of(path, row, **settings):
    """Return the only row of a pool with one row."""
    (found,) = rows_of(write(path, row), **settings)
    return found


def texts(row):
    return tuple(row[name] for name in ("question", "reference", "thinking", "answer"))


def test_a_row_has_every_column_and_its_id_is_the_hash_of_its_question(tmp_path):
    path = tmp_path / "mine.jsonl"
    columns = {"question": "q", "thinking": "t", "answer": "a", "solution": 4, "source_type": "s", "cot_type": "d"}
    assert one_of(path, columns) == {
        "row": 0,
        "reason": None,
        "detail": None,
        "id": hashlib.sha256(b"q").hexdigest()[:16],
        "question": "q",
        "reference": "4",
        "source": "s",
        "domain": "d",
        "thinking": "t",
        "answer": "a",
        "file": str(path),
        "line": 1,
        "raw": None,
    }


def test_all_parts_have_the_same_types_and_every_row_its_number(tmp_path):
    rows = [{"question": f"q{i}"} if i != 5 else {} for i in range(PART_ROWS + 3)]
    parts = list(stage(CollectConfig((write(tmp_path / "a.jsonl", *rows),))).run(None))
    assert [len(part) for part in parts] == [PART_ROWS, 3]
    assert {part.schema for part in parts} == {pa.schema(list(SCHEMA.items()))}
    assert [number for part in parts for number in part["row"].to_pylist()] == list(range(PART_ROWS + 3))


def test_a_bad_row_is_rejected_with_its_place_its_reason_and_what_it_was(tmp_path):
    bad = {
        b'{"question": "torn': ("not JSON", "Unterminated string starting at character 14"),
        b'{"question": "\xff"}': ("not UTF-8", "byte 15 of the line is 0xff (save the file as UTF-8)"),
        b"[1]": ("not a JSON object", None),
        b'{"answer": "4"}': ("no question is found", "the columns are answer"),
        b'{"question": " "}': ("question is empty", None),
        b'{"question": null, "answer": "4"}': ("question is empty", None),
        b'{"question": 5}': ("question is not text but a number", None),
        b'{"question": "q", "solution": {"a": 1}}': ("solution is not text but an object", None),
        b'{"question": "q", "thinking": "<think>t", "answer": "a"}': ("thinking has a trace that is not closed", None),
        b'{"question": "q", "options": ["x", "y"]}': (
            "column options would be left out",
            "write it into the question, or remove the column",
        ),
        b'{"question": "\\ud800"}': (
            "question is not valid Unicode",
            r"character 1 is a lone surrogate ('\ud800')",
        ),
        b'{"question": "q", "question": "r"}': ("not usable", "the key 'question' is there twice"),
    }
    path = write(tmp_path / "mine.jsonl", {"question": "first"}, *bad, {"question": "last"})
    first, *rejected, last = rows_of(path)
    assert (first["question"], last["question"], last["line"]) == ("first", "last", len(bad) + 2)
    for number, (row, (line, (reason, detail))) in enumerate(zip(rejected, bad.items(), strict=True), 1):
        assert row == EMPTY | {
            "row": number,
            "reason": reason,
            "detail": detail,
            "source": "mine",
            "file": path,
            "line": number + 1,
            "raw": line.decode(errors="replace") + "\n",
        }


@pytest.mark.parametrize("name", ["question", "solution", "thinking", "answer"])
def test_a_text_is_rejected_above_the_largest_length_and_kept_at_it(name, tmp_path):
    row = {"question": "q", "solution": "s", "thinking": "t", "answer": "a"}
    assert one_of(tmp_path / "a.jsonl", row | {name: "x" * 200_000})["reason"] is None
    long, _ = rows_of(write(tmp_path / "a.jsonl", row | {name: "x" * 200_001}, row))
    assert long["reason"] == f"{name.replace('solution', 'reference')} is too long"
    assert long["detail"] == "it has 200,001 characters, and max_characters is 200,000"
    assert json.loads(long["raw"])[name] == "x" * 200_001
    assert rows_of(write(tmp_path / "a.jsonl", row | {name: "x" * 9}, row), max_characters=8)[0]["detail"] == (
        "it has 9 characters, and max_characters is 8"
    )


def test_an_id_may_come_again_in_another_file_or_with_the_same_question_only(tmp_path):
    rows = ({"id": 7, "question": "q"}, {"id": "7", "question": "q"}, {"id": "7", "question": "r"})
    found = rows_of(write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", *rows[2:]))
    assert [(row["reason"], row["detail"]) for row in found] == [
        (None, None),
        (None, None),
        ("id of another question", "'7' is that of line 1"),
        (None, None),
    ]


def test_a_row_without_a_source_has_the_name_of_its_file(tmp_path):
    paths = [
        write(tmp_path / name, {"question": "q"}, {"question": "r", "source": "s"}) for name in ("a.jsonl", "b.jsonl")
    ]
    assert [row["source"] for row in rows_of(*paths)] == ["a", "s", "b", "s"]


def test_files_directories_and_the_hub_give_the_same_rows(tmp_path, monkeypatch):
    import datasets

    rows = [{"problem": f"q{i}", "solution": "s", "domain": None} for i in range(3)]
    expected = [(row["question"], row["reference"], row["line"]) for row in rows_of(write(tmp_path / "a.jsonl", *rows))]
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    write(folder / "test.jsonl", {"question": "held out"})
    calls = []

    def load_dataset(name, subset, *, split, **options):
        calls.append((name, subset, split, options))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(collect, "hub_revision", lambda name: "abc")
    pool = (str(folder), "some/rows", "some/rows:easy", "some/rows:easy:dev", "some/rows::dev")
    found = rows_of(*pool)
    assert [(row["question"], row["reference"], row["line"]) for row in found] == expected * 5
    assert [(row["file"], row["source"]) for row in found[::3]] == [
        (str(folder / "a.parquet"), "a"), *((name, "rows") for name in pool[1:])
    ]  # fmt: skip
    at = {"revision": "abc"}
    assert calls == [
        ("some/rows", None, "train", at), ("some/rows", "easy", "train", at), ("some/rows", "easy", "dev", at),
        ("some/rows", None, "dev", at),
    ]  # fmt: skip


def test_a_rejected_row_of_a_table_is_kept_as_json(tmp_path):
    pq.write_table(pa.table({"question": ["q", None], "n": [1.5, math.nan], "b": [b"x", b"y"]}), tmp_path / "a.parquet")
    _, rejected = rows_of(str(tmp_path / "a.parquet"))
    assert rejected["raw"] == '{"question": null, "n": NaN, "b": "b\'y\'"}'


# What a mapping replaces is not read.
ROW = {"question": "no", "prompt": "p", "solution": "no", "gt": 4, "cot": "t", "final": "a", "reasoning": "no"}
MAPPED = {
    ("question=prompt", "reference=gt", "thinking=cot", "answer=final"): ("p", "4", "t", "a"),
    ("question=prompt+gt", "thinking=cot"): None,
    ("question=prompt+final", "answer=gt", "thinking=cot"): ("p\n\na", "no", "t", "4"),
    ("reference=gt+final", "thinking=cot", "answer=gt"): ("no", "4\n\na", "t", "4"),
}


@pytest.mark.parametrize("columns", MAPPED)
def test_a_mapping_says_which_column_is_what(columns, tmp_path):
    found, _ = rows_of(write(tmp_path / "a.jsonl", ROW, {"question": "q"}), columns=columns)
    assert (texts(found) if found["reason"] is None else None) == MAPPED[columns]


def test_a_mapping_applies_to_the_rows_that_have_its_columns_and_the_first_counts(tmp_path):
    rows = ({"b": "b", "question": "q"}, {"a": "a", "b": "b"}, {"a": "a"}, {"question": "q"}, {"c": "c"})
    found = rows_of(write(tmp_path / "a.jsonl", *rows), columns=("question=a", "question=b"))
    assert [row["question"] for row in found] == ["b", "a", "a", "q", ""]


def test_columns_of_a_question_may_be_named_as_its_parts_only(tmp_path):
    row = {"passage": "p", "question": "q", "options": ["x", "y"], "input": "i"}
    columns = ("question=passage+question+options+input",)
    assert one_of(tmp_path / "a.jsonl", row, columns=columns)["question"] == "p\n\nq\n\nx\ny\n\ni"
    found, _ = rows_of(
        write(tmp_path / "a.jsonl", row, {"question": "q"}), columns=("question=passage+question+options",)
    )
    assert found["reason"] == "column input would be left out"


def test_what_a_mapping_replaces_is_not_read_where_the_mapped_column_is_empty(tmp_path):
    turns = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "no"}]
    row = {"q": "q", "messages": turns, "gt": None, "solution": "no", "cot": "", "reasoning": "no", "answer": ""}
    columns = ("question=q", "reference=gt", "thinking=cot")
    assert texts(one_of(tmp_path / "a.jsonl", row, columns=columns)) == ("q", "", "", "")


def test_source_domain_and_id_may_be_mapped(tmp_path):
    row = {"question": "q", "source": "no", "set": "s", "topic": "d", "domain": ["no"]}
    first = one_of(tmp_path / "a.jsonl", row, columns=("source=set", "domain=topic"))
    assert (first["source"], first["domain"], first["reason"]) == ("s", "d", None)
    rows = ({"question": "q", "nr": 1, "id": 1}, {"question": "r", "nr": 1, "id": 2})
    assert rows_of(write(tmp_path / "a.jsonl", *rows), columns=("id=nr",))[1]["reason"] == "id of another question"


def test_joined_columns_may_be_empty_but_not_all(tmp_path):
    rows = ({"passage": "", "q": "q"}, {"passage": " ", "q": None}, {"passage": ["a", "b"], "q": "q"})
    found = rows_of(write(tmp_path / "a.jsonl", *rows), columns=("question=passage+q",))
    assert [(row["question"], row["reason"]) for row in found] == [
        ("q", None), ("", "question is empty"), ("a\nb\n\nq", None)
    ]  # fmt: skip


def test_a_mapping_that_no_row_has_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "q", "a": "1"}, {"question": "r", "b": "1"})
    rows_of(path, columns=("answer=a", "answer=b"))
    with pytest.raises(UserError, match=r"^columns has 'answer=a\+b', but no row of the pool has a and b$"):
        rows_of(path, columns=("answer=a", "answer=a+b"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("query=q",), "columns has 'query=q': give ROLE=COLUMN"),
        (("question",), "columns has 'question': give ROLE=COLUMN"),
        (("question=a+",), "columns has 'question=a+': give ROLE=COLUMN"),
        (("question=a", "question=a"), "columns has 'question=a': give ROLE=COLUMN, each once"),
        (("id=a+b",), "columns has 'id=a+b': id is one column"),
    ],
)
def test_a_mapping_that_is_none_is_refused_at_once(columns, message):
    with pytest.raises(UserError, match=f"^{message.replace('+', '[+]')}"):
        CollectConfig(columns=columns)


def test_a_pool_that_cannot_be_read_is_one_error(tmp_path):
    empty, useless = write(tmp_path / "empty.jsonl"), write(tmp_path / "useless.jsonl", {}, {}, {"question": 1})
    missing = str(tmp_path / "none")
    for pool, kind, message in (
        ((), UserError, r"needs --collect\.pool"),
        ((empty,), UserError, r"empty\.jsonl holds no usable row: it is empty"),
        (
            (empty, useless),
            UserError,
            r"holds no usable row: no question is found \(2 x\); question is not text but a number \(1 x\)",
        ),
        ((missing,), FileNotFoundError, f"the pool has no {missing}: give"),
        ((empty, "no.jsonl"), FileNotFoundError, r"the pool has no no\.jsonl"),
        (("some/no.jsonl",), FileNotFoundError, r"the pool has no some/no\.jsonl"),
        (("some/rows",), FileNotFoundError, "no file or directory some/rows, and the hub does not give"),
        (("s1:MATHS",), UserError, "the sources of s1 are MATH, OlympicArena, .* and all"),
        ((empty, empty), UserError, r"pool has .*empty\.jsonl twice"),
        (("",), UserError, "pool has an empty entry"),
    ):
        with pytest.raises(kind, match=message):
            rows_of(*pool)


def test_the_settings_change_with_the_bytes_of_a_file_and_with_nothing_else(tmp_path):
    path = write(tmp_path / "a.jsonl", {"question": "q"})

    def settings(**changes):
        return stage(CollectConfig((path,), **changes)).settings

    before = settings()
    digest = hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert before["pool"] == [{"file": path, "sha256": digest}]
    assert json.loads(json.dumps(before)) == before
    assert settings(seed=5) == before  # no source of s1 is drawn
    assert settings(max_characters=5) != before != settings(columns=("answer=a",))
    write(tmp_path / "a.jsonl", {"question": "r"})
    assert settings() != before


def test_the_settings_have_the_revision_of_a_dataset_and_the_seed_where_it_counts(monkeypatch):
    monkeypatch.setattr(collect, "hub_revision", lambda name: name.upper())
    pool = ("some/rows::test", "s1:xword", "s1:GPQA")
    assert stage(CollectConfig(pool, seed=3)).settings["pool"] == [
        {"dataset": "some/rows::test", "revision": "SOME/ROWS"},
        {"s1": "xword", "revisions": {"0xharib/xword1": "0XHARIB/XWORD1"}, "seed": 3},
        {"s1": "GPQA", "revisions": {"Idavidrein/gpqa": "IDAVIDREIN/GPQA"}},
    ]


def test_the_pool_of_a_config_is_found_from_any_working_directory(tmp_path):
    write(tmp_path / "a.jsonl", {"question": "q"})
    pool = ("a.jsonl", "s1:all", "org/name:sub:test", "org/name", "data/b.jsonl")
    settled = with_paths(CollectConfig(pool), [tmp_path])
    assert settled.pool == (str(tmp_path / "a.jsonl"), *pool[1:4], str(tmp_path / "data/b.jsonl"))


def test_system_prompts_are_left_out_and_counted_and_unread_columns_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows_of(write(tmp_path / "a.jsonl", {"system": "s", "question": "q", "url": "u"}, {"question": "r", "system": ""}))
    assert "a: 1 row with a system prompt: it is left out" in caplog.text
    assert "a: columns that are not read: url\n" in caplog.text


def test_real_questions_and_rows_with_traces_are_collected(shared):
    data = shared / "data"
    names = ("aime_1983_2023", "gsm8k_train", "math500", "s1k_questions", "s1k_rows_with_traces")
    rows = rows_of(*(str(data / f"{name}.jsonl") for name in names))
    assert not [row for row in rows if row["reason"]]
    by_file = {name: [row for row in rows if row["file"].endswith(f"{name}.jsonl")] for name in names}
    assert [len(by_file[name]) for name in names] == [975, 7473, 500, 893, 5]
    assert all(row["reference"] for name in names[:3] for row in by_file[name])
    assert "#### 72" in by_file["gsm8k_train"][0]["reference"]
    assert all(row["thinking"] and row["answer"] for row in by_file["s1k_rows_with_traces"])
    hashes = [json.loads(line)["question_hash"] for line in (data / "s1k_questions.jsonl").read_text().splitlines()]
    # The texts of a few published questions were changed after they were hashed.
    assert sum(map(str.__eq__, [row["id"] for row in by_file["s1k_questions"]], hashes)) >= 860
