"""`problems.py`: files of problems, and the prompts made of them."""

import json
from collections import Counter

import pytest

from s1jax.evaluate.problems import Problem, read_problems


def write(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return str(path)


def test_a_jsonl_file_gives_problems_in_order_with_ids_from_lines(tmp_path):
    source = write(
        tmp_path / "mine.jsonl",
        {"id": "a", "question": " 1+1?\n", "answer": " 2 "},
        "",
        {"problem": "half?", "answer": 0.5, "unique_id": "test/x.json"},
        {"question": "2+1?", "answer": 3},
    )
    assert read_problems(source) == [
        Problem("a", "mine", " 1+1?\n", "2"),
        Problem("test/x.json", "mine", "half?", "0.5"),
        Problem("mine/4", "mine", "2+1?", "3"),
    ]


def test_columns_that_are_not_read_are_named(tmp_path, caplog):
    caplog.set_level("INFO", "s1jax")
    path = tmp_path / "sums.jsonl"
    path.write_text(
        '{"id": "a", "question": "1 + 1?", "answer": 2, "level": 3}\n{"question": "2?", "answer": 2, "url": ""}\n'
    )
    read_problems(str(path))
    assert f"{path}: columns that are not read: level, url" in caplog.text


def test_all_bad_lines_are_counted_and_named(tmp_path):
    good = {"id": "a", "question": "q", "answer": "1"}
    bad = [{"question": "q"}, {"answer": "1", "question": " "}, "[1]", "{", good, {"question": "q", "answer": "####"}]
    with pytest.raises(ValueError) as error:
        read_problems(write(tmp_path / "bad.jsonl", good, *bad))
    message = str(error.value)
    assert "6 bad lines:\n  line 2: no answer or Answer or gold in the columns question" in message
    assert "line 3: question is empty" in message
    assert "line 4: not a JSON object" in message
    assert "line 5: not JSON: Expecting property name enclosed in double quotes at character 2" in message
    assert "line 6: id 'a' was already used on line 1" in message
    assert message.endswith("line 7: no answer after ####")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (
            b'{"question": "a \\ud800 b", "answer": "1"}',
            r"question .* character 3 is a lone surrogate \('\\ud800'\)",
        ),
        (b'{"question": "q", "answer": "\\udfff"}', "answer is not valid Unicode"),
        (b'{"question": "q", "answer": 1, "id": "\\ud83d"}', "id is not valid Unicode"),
        (
            b'{"question": "caf\xe9", "answer": "1"}',
            "not UTF-8: byte 18 of the line is 0xe9",
        ),
        (
            '{"question": "q", "answer": "1"}'.encode("utf-16"),
            "not UTF-8: byte 1 of the line is 0xff",
        ),
        (b'{"question": "q", "answer": NaN}', "answer is NaN, a missing value"),
        (b'{"question": "q", "answer": -1e400}', "answer is infinite, a missing value"),
    ],
)
def test_text_that_cannot_be_encoded_and_numbers_that_are_none_are_bad_lines(tmp_path, line, fault):
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"question": "\xf0\x9f\x99\x82 \\ud83d\\ude42", "answer": 1%b}\n' % (b"0" * 400) + line)
    with pytest.raises(ValueError, match=rf"^{path}: 1 bad line:\n  line 2: {fault}"):
        read_problems(str(path))
    path.write_bytes(path.read_bytes().splitlines()[0])
    assert read_problems(str(path))[0].question == "🙂 🙂"


def test_a_name_that_is_not_utf8_is_refused_before_its_rows_are_written_under_it(tmp_path):
    with pytest.raises(ValueError, match=r"the name of the benchmark .* is not valid Unicode"):
        read_problems(write(tmp_path / "caf\udce9.jsonl", {"question": "q", "answer": "1"}))


@pytest.mark.parametrize("source", ["amie24", "missing.jsonl"])
def test_a_bad_source_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"at {source}: .*aime24, aime25, math500, gpqa_diamond, gsm8k"):
        read_problems(source)


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no problems"):
        read_problems(write(tmp_path / "empty.jsonl", ""))


HUB_ROWS = {
    "aime24": ({"id": 60, "problem": "Q", "solution": "...", "answer": "204"}, 30, "204"),
    "aime25": ({"problem": "Q", "answer": "70", "id": "0"}, 30, "70"),
    "math500": ({"problem": "Q", "solution": "", "answer": "\\pi", "unique_id": "test/a/1.json"}, 500, "\\pi"),
    "gsm8k": ({"question": "Q", "answer": "9 * 2 = <<9*2=18>>18.\n#### 18"}, 1319, "18"),
}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_named_benchmarks_come_from_the_hub_with_its_column_names(name, monkeypatch):
    import datasets

    row, size, answer = HUB_ROWS[name]
    ids = [key for key in ("id", "unique_id") if key in row]
    rows = [row | {key: f"{row[key]}-{i}" for key in ids} for i in range(size)]
    calls = []

    def load_dataset(path, config=None, *, split):
        calls.append((path, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = read_problems(name)
    assert len(problems) == size and len(calls) == 1 and "/" in calls[0][0]
    assert {(p.benchmark, p.question, p.answer) for p in problems} == {(name, "Q", answer)}
    assert problems[0].problem_id == (rows[0][ids[0]] if ids else "gsm8k/1")
    rows.pop()
    with pytest.raises(ValueError, match=f"{size - 1} rows, but {name} has {size} problems"):
        read_problems(name)


def gpqa_row(i):
    wrong = {f"Incorrect Answer {n}": f"wrong {n}\n" for n in (1, 2, 3)}
    return {"Record ID": f"rec{i}", "Question": f" Which is right ({i})?\n", "Correct Answer": " right ", **wrong}


def test_gpqa_has_its_choices_below_the_question_and_a_letter_as_its_answer(monkeypatch):
    import datasets

    rows = [gpqa_row(i) for i in range(198)]
    calls = []

    def load_dataset(path, config, *, split):
        calls.append((path, config, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = read_problems("gpqa_diamond")
    assert calls == [("Idavidrein/gpqa", "gpqa_diamond", "train")]
    assert [p.problem_id for p in problems] == [f"rec{i}" for i in range(198)]
    for i, problem in enumerate(problems):
        question, empty, *choices = problem.question.split("\n")
        assert (question, empty) == (f"Which is right ({i})?", "")
        assert [choice[:3] for choice in choices] == ["A) ", "B) ", "C) ", "D) "]
        assert sorted(choice[3:] for choice in choices) == ["right", "wrong 1", "wrong 2", "wrong 3"]
        assert f"{problem.answer}) right" in choices
    assert min(Counter(p.answer for p in problems).values()) > 198 / 8


def test_the_letters_of_a_choice_are_its_own_whatever_comes_before_it(tmp_path):
    alone = read_problems(write(tmp_path / "alone.jsonl", gpqa_row(7)))
    among = read_problems(write(tmp_path / "among.jsonl", gpqa_row(3), gpqa_row(7), gpqa_row(9)))
    assert alone[0].question == among[1].question
    assert [p.answer for p in among] == ["B", "A", "B"]  # as they were when this was written: rows on disk rely on it


def test_a_choice_that_is_empty_is_a_bad_line(tmp_path):
    with pytest.raises(ValueError, match="line 1: Incorrect Answer 2 is empty"):
        read_problems(write(tmp_path / "bad.jsonl", gpqa_row(1) | {"Incorrect Answer 2": " "}))


def test_a_benchmark_that_the_hub_does_not_give_is_one_message_with_a_way_out(monkeypatch):
    import datasets

    def load_dataset(*arguments, **keywords):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"gpqa_diamond \(Idavidrein/gpqa\).*no route to the hub.*\.jsonl"):
        read_problems("gpqa_diamond")


@pytest.mark.parametrize(("name", "size"), [("aime24", 30), ("aime25", 30), ("math500", 500), ("gsm8k_test", 1319)])
def test_real_problem_files_load_whole(shared, name, size):
    problems = read_problems(str(shared / "data" / f"{name}.jsonl"))
    assert len(problems) == len({p.problem_id for p in problems}) == size
    assert all(p.benchmark == name and p.question and p.answer for p in problems)


def test_a_row_that_asks_more_than_its_question_or_has_no_single_answer_is_a_bad_line(tmp_path):
    good = {"question": "q", "answer": "1"}
    for change, fault in (
        ({"context": "c"}, "column context would be left out: write it into the question"),
        ({"system_prompt": "s"}, "column system_prompt would be left out"),
        ({"question": 5}, "question is not text but a number"),
        ({"answer": ["1", "2"]}, "answer is not text but a list"),
        ({"answer": True}, "answer is not text but a boolean"),
        ({"id": {"a": 1}}, "id is not text but an object"),
        ({"choices": ["x", "y"], "answer": "1"}, "answer '1' names none of the choices"),
    ):
        with pytest.raises(ValueError, match=rf"mine\.jsonl: 1 bad line:\n  line 2: {fault}"):
            read_problems(write(tmp_path / "mine.jsonl", good | {"id": "first"}, good | change))
    chosen = read_problems(write(tmp_path / "mine.jsonl", {"question": "q?", "choices": ["x", "y"], "answer": 1}))
    assert chosen == [Problem("mine/1", "mine", "q?\n\nA) x\nB) y", "B")]
    with pytest.raises(ValueError, match=r"is a directory: give one \.jsonl or \.parquet file of problems"):
        read_problems(str(tmp_path))


TRIVIA = {"qid": 7, "prompt": " Which?", "target": "Jupiter", "right": "Jupiter", "w1": "Mars", "w2": "Venus"}


@pytest.mark.parametrize(
    ("columns", "row", "question", "answer"),
    [
        (("question=prompt", "answer=target"), TRIVIA, " Which?", "Jupiter"),
        # A column that was not mapped, but has a name of the role, is left out.
        (("answer=target",), TRIVIA | {"question": "q?", "answer": "no"}, "q?", "Jupiter"),
        (("question=context+question",), {"context": "c\n", "question": "q?", "answer": 3}, "c\n\nq?", "3"),
        (("question=input",), {"input": "q?", "answer": "1"}, "q?", "1"),
        (
            ("question=prompt", "answer=target", "choices=w1+right+w2"),
            TRIVIA,
            "Which?\n\nA) Mars\nB) Jupiter\nC) Venus",
            "B",
        ),
        (("choices=endings",), {"question": "q?", "endings": ["x", "y"], "label": 1}, "q?\n\nA) x\nB) y", "B"),
        (
            ("choices=opa+opb", "answer=cop"),
            {"question": "q?", "opa": "x", "opb": "y", "cop": 0, "answer_idx": "B"},
            "q?\n\nA) x\nB) y",
            "A",
        ),
    ],
)
def test_columns_of_other_names_are_mapped(tmp_path, columns, row, question, answer):
    assert read_problems(write(tmp_path / "mine.jsonl", row), columns) == [Problem("mine/1", "mine", question, answer)]


def test_an_id_may_be_mapped_too_and_parquet_gives_the_same_problems(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [TRIVIA, TRIVIA | {"qid": 8}]
    columns = ("id=qid", "question=prompt", "answer=target")
    problems = read_problems(write(tmp_path / "mine.jsonl", *rows), columns)
    assert [problem.problem_id for problem in problems] == ["7", "8"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    assert read_problems(str(tmp_path / "mine.parquet"), columns) == problems
    with pytest.raises(
        ValueError, match=r"mine\.parquet: 2 bad rows:\n  row 1: no column uid in the columns qid, prompt"
    ):
        read_problems(str(tmp_path / "mine.parquet"), ("id=uid",))


def test_choices_whose_right_one_has_a_column_of_its_own_are_shuffled_as_those_of_gpqa(tmp_path):
    rows = [gpqa_row(i) for i in range(40)]
    columns = (
        "choices=Correct Answer+Incorrect Answer 1+Incorrect Answer 2+Incorrect Answer 3",
        "answer=Correct Answer",
    )
    source = write(tmp_path / "mine.jsonl", *rows)
    assert read_problems(source, columns) == read_problems(source)
    assert len({problem.answer for problem in read_problems(source, columns)}) == 4
    three = {"question": "q?", "right": "x", "w1": "y", "w2": "z"}
    (problem,) = read_problems(write(tmp_path / "three.jsonl", three), ("choices=w1+right+w2", "answer=right"))
    assert f"{problem.answer}) x" in problem.question.splitlines()


@pytest.mark.parametrize(
    "columns", [("prompt",), ("question=",), ("question=a+",), ("hint=a",), ("id=a", "id=b"), ("answer=a+b",)]
)
def test_a_bad_mapping_is_one_message(tmp_path, columns):
    with pytest.raises(ValueError, match=r"^columns has '"):
        read_problems(write(tmp_path / "mine.jsonl", TRIVIA), columns)


def test_a_hub_dataset_is_read_by_its_split_and_subset(monkeypatch, tmp_path):
    import datasets

    calls = []

    def load_dataset(path, subset, *, split):
        calls.append((path, subset, split))
        if split == "val":
            raise ValueError("Unknown split \"val\". Should be one of ['test'].")
        return datasets.Dataset.from_list([TRIVIA])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    columns = ("question=prompt", "answer=target")
    assert read_problems("some/trivia", columns) == [Problem("trivia/1", "trivia", " Which?", "Jupiter")]
    assert read_problems("some/trivia", columns, "easy", "train")[0].problem_id == "trivia-easy/1"
    assert calls == [("some/trivia", None, "test"), ("some/trivia", "easy", "train")]
    with pytest.raises(FileNotFoundError, match=r"some/trivia, and the hub does not give its val split .*'test'"):
        read_problems("some/trivia", columns, split="val")
    with pytest.raises(ValueError, match="dataset some/trivia: 1 bad row:\n  row 1: no question or problem"):
        read_problems("some/trivia")
    for source in ("aime24", write(tmp_path / "mine.jsonl", TRIVIA)):
        with pytest.raises(ValueError, match=r"subset and split belong to a hub dataset \(ORG/NAME\)"):
            read_problems(source, split="test")
