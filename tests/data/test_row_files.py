"""`row_files.py`: which files of a directory are read."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s1jax.data.row_files import hub_rows, raw_rows, training_files
from s1jax.runtime.errors import UserError

FOLDERS = {
    "splits": ("train.jsonl", "validation.jsonl", ".train.jsonl", "train.rejects.jsonl"),
    "quickstart": ("train.jsonl", "pool.jsonl", "heldout.jsonl", "train.rejects.jsonl"),
    "hub": ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
    "split folders": ("train/a.jsonl", "train/b.jsonl", "test/a.jsonl"),
    "words": ("math_problems.jsonl", "pool.problems.jsonl", "problems.jsonl"),
    "both words": ("test-time-train.jsonl", "train.heldout.jsonl"),
    "no train split": ("math.jsonl", "physics.parquet", "held-out.jsonl", "math_dev.jsonl", "runs/metrics.jsonl", "notes.md"),
}  # fmt: skip
READ = {
    "splits": FOLDERS["splits"][:1],
    "quickstart": FOLDERS["quickstart"][:1],
    "hub": FOLDERS["hub"][:2],
    "split folders": FOLDERS["split folders"][:2],
    "words": FOLDERS["words"][:1],
    "both words": FOLDERS["both words"][:1],
    "no train split": FOLDERS["no train split"][:2],
}


def make(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_directory_gives_its_train_split_or_else_all_that_is_of_no_other(name, tmp_path, caplog):
    caplog.set_level(logging.INFO, "s1jax")
    make(tmp_path, FOLDERS[name])
    assert [str(file.relative_to(tmp_path)) for file in training_files(tmp_path)] == list(READ[name])
    message = caplog.messages[0]
    assert f"reading {', '.join(READ[name])}; left out: " in message
    assert all(f"{file} (" in message for file in set(FOLDERS[name]) - {*READ[name], "notes.md"})


def test_a_directory_without_a_certain_training_file_is_refused(tmp_path):
    make(tmp_path, ["test.jsonl"])
    with pytest.raises(FileNotFoundError, match=r"holds no .* for training; left out: test\.jsonl \(test\)"):
        training_files(tmp_path)
    make(tmp_path, ["train.jsonl", "train.parquet"])
    with pytest.raises(ValueError, match=r"holds both train\.jsonl and train\.parquet: give one"):
        training_files(tmp_path)


def test_a_short_float_of_parquet_keeps_its_digits_and_a_far_date_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"answer": pa.array([0.1, None], pa.float32())}), path)
    assert [row["answer"] for _, _, row, _ in raw_rows(str(path))] == [0.1, None]
    pq.write_table(pa.table({"when": pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))}), path)
    with pytest.raises(UserError, match=r"rows\.parquet cannot be read as Parquet \(OverflowError"):
        list(raw_rows(str(path)))


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array([text]) for text in "qtab"]
    table = pyarrow.Table.from_arrays(columns, names=["question", "thinking", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet .*: it has two columns named answer"):
        list(raw_rows(str(tmp_path / "rows.parquet")))


def test_a_json_file_is_read_as_json_lines(tmp_path):
    (tmp_path / "rows.json").write_text('{"a": 1}\n')
    assert [columns for _, _, columns, _ in raw_rows(str(tmp_path / "rows.json"))] == [{"a": 1}]
    (tmp_path / "rows.json").write_text('[\n{"a": 1}\n]\n')
    with pytest.raises(ValueError, match=r"rows\.json is a JSON array, not JSON lines"):
        list(raw_rows(str(tmp_path / "rows.json")))


def test_a_hub_dataset_is_read_at_a_revision_and_from_files_that_are_named(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options))
        return [{"a": 1}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(hub_rows("some/rows", "test", "easy", revision="abc")) == [("some/rows", 1, {"a": 1}, "")]
    list(hub_rows("some/rows", "test", files=("a.jsonl", "b/c.json"), revision="abc"))
    list(hub_rows("some/rows", "test", files=("a.jsonl",)))
    files = (["some/rows@abc/a.jsonl", "some/rows@abc/b/c.json"], ["some/rows/a.jsonl"])
    assert calls == [
        ("some/rows", "easy", {"split": "test", "revision": "abc"}),
        *(
            ("json", None, {"split": "test", "data_files": {"test": [f"hf://datasets/{file}" for file in some]}})
            for some in files
        ),
    ]


def test_a_hub_dataset_with_a_script_is_read_from_its_parquet_files(monkeypatch):
    import datasets

    rows = {"refs/convert/parquet": [{"a": 1}]}

    def load_dataset(name, subset, *, split, revision=None):
        if split == "torn":
            raise RuntimeError(f"cannot read {revision}")
        if revision not in rows:
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {name}.py")
        return rows[revision]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for revision in (None, "abc"):
        assert [row for _, _, row, _ in hub_rows("some/rows", "test", revision=revision)] == [{"a": 1}]
    with pytest.raises(FileNotFoundError, match=r"RuntimeError: cannot read abc"):
        list(hub_rows("some/rows", "torn", revision="abc"))
    rows.clear()
    with pytest.raises(FileNotFoundError, match=r"the hub does not give its test split .*scripts are no longer"):
        list(hub_rows("some/rows", "test"))
