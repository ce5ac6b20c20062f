"""`tables.py`: the tables of a study."""

import pytest

from s1jax.results.tables import format_thinking_table, format_voting_table
from tests.support.samples import sample, study_rows


def test_the_table_is_aligned_and_counts_what_the_budget_ended():
    data = study_rows()
    lines = format_thinking_table(data).splitlines()
    assert lines[0] == "toy, m, budget_forcing, temperature 0"
    assert len({len(line) for line in lines[1:-2]}) == 1
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[3:-2]]
    assert cells[1] == ["budget 16", "5", "16.0", "5 of 5, all at 16", "0", "0", "0.0", "0.0 to 43.4"]
    assert cells[3][:4] == ["budget 64", "5", "52.0", "0 of 5"]
    assert cells[5][:4] == ['budget 64, "Wait" x2', "5", "63.4", "3 of 5, all at 64"]
    assert lines[-2].startswith("Control 100% (100% of samples)   Scaling +")
    data[1]["num_thinking_tokens"] = 17
    assert "5 of 5, 1 OVER IT" in format_thinking_table(data)


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ([{}] * 10, []),
        ([dict(extracted=None)] + [{}] * 9, []),
        ([dict(extracted=None)] * 2 + [{}] * 8, ["no answer was found (2 of 10 under budget 64): an answer is a"]),
        ([dict(finish_reason="length")] * 10, ["cut the answer (10 of 10 under budget 64): raise --max-answer-tokens"]),
        ([dict(num_thinking_tokens=64)] * 10, ["the largest budget ended the thinking (10 of 10 under budget 64)"]),
        ([dict(max_thinking_tokens=0, num_thinking_tokens=0)] * 10, []),
        (
            [{}] * 2 + [dict(max_thinking_tokens=32)],
            ["no Scaling: 1 problem under budget 32 | 2 problems under budget 64"],
        ),
    ],
)
def test_a_table_warns_of_faults_of_more_than_a_tenth_of_the_samples(changes, warnings):
    rows = [sample(problem_id=f"p{i}", **change) for i, change in enumerate(changes)]
    found = [line for line in format_thinking_table(rows).splitlines() if line.startswith("warning: ")]
    assert len(found) == len(warnings) and all(map(str.__contains__, found, warnings))


def test_a_table_warns_of_any_answer_that_could_not_be_compared_in_time():
    rows = [sample(problem_id=f"p{i}", verdict="timed_out" if i < 2 else "equal", correct=i >= 2) for i in range(40)]
    assert "warning: 2 answers could not be compared in time" in format_thinking_table(rows)
    assert "in time" not in format_thinking_table(rows[2:])


def test_a_title_names_each_setting_once_and_as_its_flag_does():
    rows = [sample(temperature=0.7, top_p=p) for p in (0.9, 1.0)] + [sample(temperature=1.0, top_p=1.0)]
    titles = [block.splitlines()[0] for block in format_thinking_table(rows).split("\n\n")]
    assert titles[0] == "toy, m, budget_forcing, temperature 0.7, top-p 0.9"


def test_a_name_cannot_command_a_terminal():
    table = format_thinking_table(study_rows(benchmarks=("a\x1b[2J", "b\u202e"), models=("m\x07", "n\ud800")))
    assert "a\\x1b[2J, m\\x07, " in table and "b\\u202e, n\\ud800, " in table and table.replace("\n", "").isprintable()


def test_the_voting_table_has_a_block_per_setting():
    table = format_voting_table(study_rows(samples=4, budgets=(64,)))
    assert table.count("maj@k %") == 3 and 'temperature 1, budget 64, "Wait" x2' in table
    block = table.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in block[3:]] == ["1", "2", "4"]
    assert len({len(line) for line in block[1:]}) == 1


def test_a_model_that_does_not_think_has_no_budget_and_no_control_and_is_told_by_its_format_alone():
    at_once = dict(model="m", thinking_format="none", wrap_up="", max_thinking_tokens=0, num_thinking_tokens=0)
    lines = format_thinking_table(
        [*study_rows(), *(sample(problem_id=f"p{i}", **at_once) for i in range(5))]
    ).splitlines()
    start = lines.index("toy, m, budget_forcing, temperature 0, thinking-format none")
    assert "ended by budget" not in lines[start + 1]
    assert lines[start + 3].split()[:4] == ["no", "thinking", "5", "0.0"]
    assert lines[start + 4].startswith("Control - (- of samples)   Scaling -   Performance 100.0%")
