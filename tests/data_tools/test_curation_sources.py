"""`sources.py`: the layout, the rule and the draw of each source of s1."""

import logging

import pytest

from data_tools.curation import collect
from data_tools.curation.collect import CollectConfig, stage
from data_tools.curation.sources import SOURCES
from s1jax.data import row_files

# The number of rows of each source in the paper's table 7.
SIZES = {
    "NuminaMATH": 30_660, "MATH": 11_999, "OlympicArena": 4_250, "OmniMath": 4_238, "AGIEval": 2_385, "xword": 999, "OlympiadBench": 896,
    "AIME": 890, "TheoremQA": 747, "USACO": 519, "JEEBench": 515, "GPQA": 348, "SciEval": 227, "s1-prob": 182, "LiveCodeBench": 151,
    "s1-teasers": 23,
}  # fmt: skip
ARENA = {"language": "EN", "modality": "text-only", "subject": "Math"}
CODE = {"question_title": "t", "platform": "atcoder", "private_test_cases": "eJx"}
SCI = {"category": "biology", "topic": "cells", "task_name": "SocraticQA", "type": "multiple-choice", "answer": ["B"]}
GPQA = {"Explanation": "e", "High-level domain": "Physics", "Correct Answer": "x", "Incorrect Answer 1": "y"}
OLYMPIAD = {"final_answer": ["2"], "subject": "Physics", "modality": "Text-only", "language": "English"}
INSTRUCTION = (
    "Solve the crossword puzzle. You are presented with a clue as input and the number of letters in brackets."
)

# For each source: the rows of its datasets, by dataset, subset and split, in the layout of the hub; and (question, reference, domain) of
# the rows of the pool.
HUB = {
    "MATH": (
        {("simplescaling/openaimath", None, "train"): [
            {"problem": "q", "solution": r"so $\boxed{4}$", "answer": "4", "subject": "Algebra", "level": 2, "unique_id": "train/1"},
        ]},
        [("q", r"so $\boxed{4}$", "Algebra")],
    ),
    "OlympicArena": (
        {("GAIR/OlympicArena", "Math", "test"): [
            ARENA | {"problem": "q1", "solution": None, "figure_urls": None},
            ARENA | {"problem": "Chinese", "solution": None, "language": "ZH"},
            ARENA | {"problem": "with a picture", "solution": None, "modality": "multi-modal"},
        ],
         ("GAIR/OlympicArena", "CS", "val"): [ARENA | {"problem": "q2", "solution": "s", "subject": "CS"}]},
        [("q1", "", "Math"), ("q2", "s", "CS")],
    ),
    "TheoremQA": (
        {("TIGER-Lab/TheoremQA", None, "test"): [
            {"Question": "q", "Answer": "[1, 2]", "Answer_type": "list of integer", "Picture": None},
            {"Question": "with a picture", "Answer": "1", "Answer_type": "integer", "Picture": object()},
        ]},
        [("q", "[1, 2]", "")],
    ),
    "NuminaMATH": (
        {("AI-MO/NuminaMath-CoT", None, "train"): [
            {"source": "aops_forum", "problem": "q1", "solution": "s1", "messages": [{"role": "user", "content": "q1"}]},
            {"source": "cn_k12", "problem": "q2 ", "solution": "s2", "messages": []},
            {"source": "cn_k12", "problem": "not listed", "solution": "s", "messages": []},
        ],
         ("simplescaling/numinamath_500", None, "train"): [{"problem": "q2", "source": "cn_k12"}]},
        [("q1", "s1", "aops_forum"), ("q2 ", "s2", "cn_k12")],
    ),
    "OmniMath": (
        {("KbsdJames/Omni-MATH", None, "test"): [
            {"domain": ["Mathematics -> Algebra", "Other"], "difficulty": 8.0, "problem": "q", "solution": "s", "answer": "4"},
            {"domain": [], "difficulty": 8.0, "problem": "r", "solution": "s", "answer": "4"},
        ]},
        [("q", "s", "Mathematics -> Algebra"), ("r", "s", "")],
    ),
    "SciEval": (
        {("OpenDFM/SciEval", None, "test"): [
            SCI | {"question": "no answer\n\nAnswer:", "answer": None},
            SCI | {"question": "q1\n\nA. x\nB. y\n\nAnswer:"},
        ],
         ("OpenDFM/SciEval", None, "validation"): [
            SCI | {"question": "q2\nOptimal solvent:", "answer": ["CO", "O"], "category": "chemistry", "task_name": "reagent selection"},
        ]},
        [("q1\n\nA. x\nB. y", "B", "biology"), ("q2\nWhat is the optimal solvent?", "CO", "chemistry")],
    ),
    "OlympiadBench": (
        {("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"): [OLYMPIAD | {"question": "q1", "solution": ["s", "t"], "context": None}],
         ("Hothan/OlympiadBench", "TP_TO_physics_en_COMP", "train"): [OLYMPIAD | {"question": "q2", "solution": ["s"], "context": "c"}]},
        [("q1", "s", "Physics"), ("c\n\nq2", "s", "Physics")],
    ),
    "JEEBench": (
        {("daman1209arora/jeebench", None, "test"): [
            {"subject": "phy", "description": "JEE Adv 2016", "gold": "AC", "index": 1, "type": "MCQ(multiple)", "question": "q"},
        ]},
        [("q", "AC", "phy")],
    ),
    "AGIEval": (
        {("baber/agieval", "sat_en", "test"): [
            {"passage": "p", "question": "q1", "options": ["(A)x", "(B)y"], "label": "A", "solution": "s"},
            {"passage": "", "question": "q2", "options": ["(A)x", "(B)y"], "label": "B", "solution": None},
        ],
         ("baber/agieval", "math_agieval", "few_shot"): [
            {"question": "q3", "answer": "4", "level": 5, "solution": "s3"},
            {"question": "an easy one", "answer": "4", "level": 4, "solution": "s"},
        ]},
        [("p\n\nq1\n(A)x\n(B)y", "s", ""), ("q2\n(A)x\n(B)y", "B", ""), ("q3", "s3", "")],
    ),
    "s1-prob": ({("simplescaling/s1-prob", None, "train"): [{"question": "q", "solution": "s"}]}, [("q", "s", "")]),
    "GPQA": (
        {("Idavidrein/gpqa", "gpqa_extended", "train"): [GPQA | {"Question": "q"}, GPQA | {"Question": "diamond\n"}],
         ("Idavidrein/gpqa", "gpqa_diamond", "train"): [GPQA | {"Question": "diamond"}]},
        [("q", "e", "Physics")],
    ),
    "xword": (
        {("0xharib/xword1", None, "train"): [
            {"instruction": "i", "input": "### Clue: A sort of clue (7)", "output": "### Answer: x"},
        ]},
        [(f"{INSTRUCTION}\n\nA sort of clue (7)", "### Answer: x", "")],
    ),
    "USACO": (
        {("codegenning/usacobench_formatted", None, "test"): [{"question": "\nq\n", "name": "n", "num_tests": 9}]},
        [("q", "", "")],
    ),
    "s1-teasers": ({("simplescaling/s1-teasers", None, "train"): [{"Question": "q\n", "Answer": "7"}]}, [("q", "7", "")]),
    "LiveCodeBench": (
        {("json", None, "test"): [
            CODE | {"question_content": "q\n", "difficulty": "hard"}, CODE | {"question_content": "r", "difficulty": "medium"},
        ]},
        [("q", "", "")],
    ),
    "AIME": (
        {("qq8933/AIME_1983_2024", None, "train"): [
            {"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "q1", "Answer": "60", "Part": None},
            {"ID": "2021-II-15", "Year": 2021, "Problem Number": 15, "Question": "q2", "Answer": "258", "Part": "II"},
            {"ID": "2022-I-1", "Year": 2022, "Problem Number": 1, "Question": "too late", "Answer": "116", "Part": "I"},
        ]},
        [("q1", "60", ""), ("q2", "258", "")],
    ),
}  # fmt: skip
BAD = {
    "xword": ({"instruction": "i", "input": "A sort of clue", "output": "x"}, "no clue in the column input"),
    "AIME": ({"ID": "unknown", "Question": "q", "Answer": "1"}, "no year begins the ID"),
    "MATH": ({"question": "q", "solution": "s", "subject": "Algebra"}, "no column problem"),
    "s1-prob": ({"question": None, "solution": "s"}, "question is empty"),
    "USACO": ({"question": 5}, "question is not text but a number"),
    "OmniMath": ({"problem": "q", "solution": "s", "domain": "d"}, "domain is not a list"),
}


@pytest.fixture
def hub(monkeypatch):
    """Rows by dataset, subset and split, and the calls of the loader. What has no rows is empty."""
    import datasets

    rows, calls = {}, []

    def load_dataset(name, subset, *, split, **options):
        calls.append((name, subset, split, options))
        return rows.get((name, subset, split), [])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(collect, "hub_revision", lambda name: f"revision of {name}")
    return rows, calls


def rows_of(*pool, **settings):
    return [row for part in stage(CollectConfig(pool, **settings)).run(None) for row in part.to_pylist()]


def test_the_sources_are_the_sixteen_of_the_paper():
    assert SOURCES.keys() == SIZES.keys() == HUB.keys()
    assert sum(SIZES.values()) == 59_029


@pytest.mark.parametrize("name", HUB)
def test_a_source_gives_the_rows_that_its_rule_takes(name, hub, caplog):
    caplog.set_level(logging.INFO)
    found, expected = HUB[name]
    hub[0].update(found)
    rows = rows_of(f"s1:{name}")
    # A draw may change the order.
    assert sorted((row["question"], row["reference"], row["domain"]) for row in rows) == sorted(expected)
    assert {row["source"] for row in rows} == {name} and not any(row["reason"] for row in rows)
    num_rows = sum(
        len(part)
        for (dataset, subset, _), part in found.items()
        if "diamond" not in str(subset) and "_500" not in dataset
    )
    assert f"s1:{name}: {num_rows} rows, its rule leaves out {num_rows - len(expected)}" in caplog.text


@pytest.mark.parametrize("name", HUB)
def test_a_source_is_read_at_the_revision_that_its_settings_name(name, hub):
    hub[0].update(HUB[name][0])
    revisions = stage(CollectConfig((f"s1:{name}",))).settings["pool"][0]["revisions"]
    rows_of(f"s1:{name}")
    for dataset, _, _, options in hub[1]:
        if dataset == "json":
            assert options["data_files"]["test"] == [
                f"hf://datasets/livecodebench/code_generation_lite@{revision}/{file}"
                for revision in revisions.values()
                for file in ("test.jsonl", "test2.jsonl", "test3.jsonl")
            ]
        else:
            assert options == {"revision": revisions[dataset]}
    assert {dataset for dataset, *_ in hub[1]} - {"json"} <= revisions.keys()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_of_a_source_is_rejected(name, hub):
    row, reason = BAD[name]
    (place,) = HUB[name][0]
    hub[0][place] = [*HUB[name][0][place], row]
    (rejected,) = [row for row in rows_of(f"s1:{name}") if row["reason"]]
    assert (rejected["reason"], rejected["line"]) == (reason, len(hub[0][place]))
    assert rejected["file"] == ":".join(filter(None, [place[0], place[1]])) + ("::test" if place[2] == "test" else "")
    assert rejected["source"] == name and next(iter(row)) in rejected["raw"]


def test_all_sources_come_in_the_order_of_the_released_code(hub):
    for found, _ in HUB.values():
        hub[0].update(found)
    rows = rows_of("s1:all")
    assert list(dict.fromkeys(row["source"] for row in rows)) == list(SOURCES)
    assert [*SOURCES][:4] == ["MATH", "OlympicArena", "TheoremQA", "NuminaMATH"] and [*SOURCES][-1] == "AIME"


def test_a_crossword_draw_is_a_function_of_the_seed_and_keeps_the_order(hub):
    clues = [{"input": f"### Clue: {i}", "output": ""} for i in range(3000)]
    hub[0]["0xharib/xword1", None, "train"] = [*clues, {"input": "bad", "output": ""}]
    first, again, other = (rows_of("s1:xword", seed=seed) for seed in (1, 1, 2))
    lines = [row["line"] for row in first if not row["reason"]]
    assert first == again != other
    assert len(lines) == 1000 and lines == sorted(set(lines))
    assert sum(row["reason"] is not None for row in first) == 1
    assert 300 < sum(line in {row["line"] for row in other} for line in lines) < 370  # a third of them by chance


def test_the_draw_of_scieval_is_spread_over_tasks_and_in_each_over_topics(hub):
    def rows(task, topic, num):
        return [SCI | {"question": f"{task} {topic} {i}", "task_name": task, "topic": topic} for i in range(num)]

    hub[0]["OpenDFM/SciEval", None, "test"] = [
        *rows("SocraticQA", "a", 300), *rows("SocraticQA", "b", 20), *rows("SocraticQA", "c", 300),
        *rows("MedQA", None, 400), *rows("PubMedQA", None, 10),
    ]  # fmt: skip
    first, again, other = (rows_of("s1:SciEval", seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    by_group = {}
    for row in first:
        group = row["question"].rpartition(" ")[0]
        by_group[group] = by_group.get(group, 0) + 1
    # 10 are all of PubMedQA; 240 are left for two tasks; in one of them 20 are all of a topic, and 100 are left for two.
    assert by_group == {
        "PubMedQA None": 10,
        "MedQA None": 120,
        "SocraticQA a": 50,
        "SocraticQA b": 20,
        "SocraticQA c": 50,
    }


def test_a_dataset_that_the_hub_does_not_give_is_named(hub, monkeypatch):
    import datasets

    def load_dataset(*arguments, **options):
        raise ValueError("no such split")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        FileNotFoundError, match=r"simplescaling/numinamath_500, and the hub does not give its train split"
    ):
        rows_of("s1:NuminaMATH")
    assert row_files.hub_revision("simplescaling/openaimath") is None  # the tests have no network
