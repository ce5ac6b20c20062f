"""`compare.py`: which settings and problems are paired, and what is refused."""

import json
import random

import pytest
from scipy.stats import binomtest

from s1jax.results.compare import CompareConfig, compare, compare_sides
from tests.support.samples import sample, study_rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    """A study in bfloat16, and one in float32 with one more budget, one problem less, and other verdicts."""
    rng = random.Random(0)
    other = []
    for row in study_rows(budgets=(16, 32, 64, 128)):
        right = rng.random() < 0.5
        if row["problem_id"] != "p4":
            other.append(row | {"dtype": "float32", "correct": right, "verdict": "equal" if right else "different"})
    return write(tmp_path / "a.jsonl", study_rows()), write(tmp_path / "b.jsonl", other)


def test_every_setting_of_both_files_is_compared_over_the_problems_of_both(files, tmp_path):
    output = tmp_path / "out.json"
    text = compare(CompareConfig(files, output=output))
    comparisons = json.loads(output.read_text())
    assert [(c["a"]["max_thinking_tokens"], c["a"]["num_ignore"]) for c in comparisons] == [(16, 0), (32, 0), (64, 0)]
    a, b = (
        {
            (r["max_thinking_tokens"], r["num_ignore"], r["problem_id"]): r["correct"]
            for r in map(json.loads, f.read_text().splitlines())
        }
        for f in files
    )
    for c in comparisons:
        keys = [(c["a"]["max_thinking_tokens"], 0, f"p{i}") for i in range(4)]
        only_a, only_b = sum(a[k] and not b[k] for k in keys), sum(b[k] and not a[k] for k in keys)
        assert (c["num_problems"], c["num_only_a"], c["num_only_b"]) == (4, 1, 0)
        assert (c["num_a_better"], c["num_b_better"], c["difference"]) == (only_a, only_b, (only_b - only_a) / 4)
        assert c["p_value"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1)
        assert (c["a"]["dtype"], c["b"]["dtype"], c["texts"]["num_equal"]) == ("bfloat16", "float32", 4)
    assert "bfloat16" in text.splitlines()[0] and "float32" in text.splitlines()[1]
    assert "up to 1 problem only in A and 0 problems only in B" in text
    assert compare(CompareConfig(files, output=output)) == text


def test_choices_pair_settings_of_one_file(files):
    path = files[0]
    text = compare(CompareConfig((path,), a=("num_ignore=0", "max_thinking_tokens=64"), b=("ignore_text=Wait",)))
    assert 'budget 64 against budget 64, "Wait" x1' in text and 'budget 64 against budget 64, "Wait" x2' in text
    text = compare(CompareConfig((path,), ("temperature=0.0", "max_thinking_tokens=16"), ("max_thinking_tokens=32",)))
    assert "budget 16 against budget 32" in text


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            (),
            (),
            r"one file: choose rows with --a and --b, by max_thinking_tokens \('0', '16', '32', '64'\); num_ignore",
        ),
        (("num_ignore=0",), ("num_ignore=0",), "A and B are of one file"),
        (("num_ignore=0",), ("max_thinking_tokens=64",), "5 rows would be in A and in B"),
        (("num_ignore",), ("num_ignore=1",), "--a 'num_ignore': give column=value; columns: benchmark"),
        (("thinking=x",), ("num_ignore=1",), "give column=value"),
        (("num_ignore=0",), ("num_ignore=7",), r"--b 'num_ignore=7': no row of .* its values: '0', '1', '2'"),
    ],
)
def test_a_choice_that_makes_no_pair_is_explained(files, a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(CompareConfig(files[:1], a, b))


def test_rows_that_cannot_be_paired_are_refused(files):
    rows = study_rows(budgets=(16,), waits=())
    for changes, message in (
        ({"benchmark": "other"}, "no benchmark in common"),
        ({"problem_id": "q"}, "no problem in common"),
        ({"problem": "ffff"}, "problem 'p0' has another question or answer"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_sides(rows, [row | changes for row in rows[:1]], files)
    crossed = [rows[0] | {"dtype": "float32", "top_k": 0}, rows[0] | {"dtype": "bfloat16", "top_k": 5}]
    with pytest.raises(ValueError, match="no setting is in both; choose with --a and --b"):
        compare_sides(
            crossed, [rows[0] | {"dtype": "float32", "top_k": 5}, rows[0] | {"dtype": "bfloat16", "top_k": 0}], files
        )
    with pytest.raises(ValueError, match="one file of sample rows or two, not 3"):
        CompareConfig((*files, files[0]))


def test_no_file_of_another_program_is_replaced(files, tmp_path):
    output = tmp_path / "mine.json"
    output.write_text('{"my": "data"}')
    with pytest.raises(ValueError, match="is of another program"):
        compare(CompareConfig(files, output=output))
    assert output.read_text() == '{"my": "data"}'


def test_several_samples_are_compared_by_problem_with_a_stated_seed(tmp_path):
    rng = random.Random(1)
    a, b = (
        [sample(model=m, problem_id=f"p{p}", sample_index=i, temperature=1.0, correct=rng.random() < chance)
         for p in range(12) for i in range(n)]
        for m, n, chance in (("m", 4, 0.3), ("n", 2, 0.8))
    )  # fmt: skip
    files = (write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b))
    text = compare(CompareConfig(files, draws=1000, seed=7))
    assert "1,000 random exchanges within problems (seed 7)" in text and "m, budget_forcing" in text
    (c,) = compare_sides(a, b, files, 1000, 7)
    assert c["texts"]["num_pairs"] == 24 and c["num_problems"] == 12 and c["p_value"] < 0.05


def test_a_reader_of_tokens_is_asked_for_rows_that_have_them(files):
    rows = [row | {"tokens_at": 3} for row in study_rows(budgets=(16,), waits=())]
    asked = []

    def read_tokens(path, row):
        asked.append(path.name)
        return {"token": [1, 2 + len(asked)], "logprob": [0.0, -1.5], "forced": [1, 0]}

    others = [row | {"dtype": "float32", "thinking": "x"} for row in rows]
    (c,) = compare_sides(rows, others, files, read_tokens=read_tokens)
    assert asked == ["a.jsonl", "b.jsonl"] * 5 and c["texts"]["num_with_tokens"] == 5
    assert {found["token"] for found in c["texts"]["divergences"]} == {1}
