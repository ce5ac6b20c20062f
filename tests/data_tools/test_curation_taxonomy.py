"""`taxonomy.py`: labels from files."""

import json

import pytest

from data_tools.curation.taxonomy import Label, read_taxonomy


def test_msc_has_61_labels_that_differ_in_code_and_name():
    labels = read_taxonomy("msc")
    assert len({label.code for label in labels}) == len({label.name for label in labels}) == len(labels) == 61
    assert labels[4].code == "11" and labels[4].name == "Number theory"
    assert "Diophantine equations" in labels[4].topics


def test_msc_has_the_codes_and_titles_of_the_published_list(shared):
    published = json.loads((shared / "data" / "msc.json").read_text())
    labels = read_taxonomy("msc")
    assert [label.code for label in labels] == [entry["code"] for entry in published]
    for label, entry in zip(labels, published, strict=True):
        assert entry["title"].replace("$", "").startswith(label.name)
        assert {*label.topics} | {label.name} >= {topic.strip() for topic in entry["descriptions"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fields.json", '[{"code": "1", "name": "Algebra", "topics": ["rings"]},\n {"name": "Chess"}]'),
        ("fields.jsonl", '{"code": "1", "name": "Algebra", "topics": ["rings"], "other": 1}\n\n{"name": " Chess"}\n'),
        ("fields.txt", "\ufeff1\tAlgebra\n\n  Chess\n"),
    ],
)
def test_labels_are_read_from_json_json_lines_and_text(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    topics = () if name.endswith(".txt") else ("rings",)
    assert read_taxonomy(str(tmp_path / name)) == [Label("1", "Algebra", topics), Label("", "Chess")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", r"a\.json is not JSON"),
        ("a.json", b'{"name": "x"}', "is no JSON array of labels"),
        ("a.json", b'["x", "y"]', "label 1 is no JSON object with a name"),
        ("a.json", b'[{"name": "x"}, {"name": " "}]', "label 2 has no name of one line"),
        ("a.json", b'[{"name": "x"}, {"name": "a\\nb"}]', "label 2 has no name of one line"),
        ("a.json", b'[{"name": "x", "code": 3}, {"name": "y"}]', "label 1 has a code that is no text"),
        ("a.json", b'[{"name": "x", "topics": "t"}, {"name": "y"}]', "label 1 has topics that are no list of texts"),
        ("a.json", b'[{"name": "x"}, {"name": "a\\ud800"}]', "label 2 is not valid Unicode"),
        ("a.jsonl", b'{"name": "x"}\n{"name": \n', "line 2 is not JSON"),
        ("a.txt", b"x\ny\nX\n", "line 3 has 'X', and so has line 1"),
        ("a.txt", b"1\tx\n1\ty\n", "line 2 has '1', and so has line 1"),
        ("a.txt", b"x\n", "holds 1 labels: a taxonomy needs two or more"),
        ("a.txt", b"", "holds 0 labels"),
        ("a.txt", b"x\ncaf\xe9\n", "is not UTF-8"),
        ("a.txt", b"PAR1....", "is Parquet, not text"),
    ],
)
def test_a_bad_taxonomy_is_one_error_that_names_the_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_taxonomy(str(tmp_path / name))


def test_a_missing_taxonomy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no taxonomy at .*: give msc, or a \.json, \.jsonl or text file"):
        read_taxonomy(str(tmp_path / "none.json"))
