"""`tables.py`: the tables of a study."""

from s1jax.results.tables import format_thinking_table, format_voting_table
from tests.support.samples import study_rows


def lines(figure):
    """The points of each line that joins some."""
    joined = [line for line in figure.axes[0].lines if line.get_linestyle() not in ("None", ":")]
    return [list(zip(*line.get_data(), strict=True)) for line in joined]


def test_the_table_is_aligned_and_counts_what_the_budget_ended():
    data = study_rows()
    lines = format_thinking_table(data).splitlines()
    assert lines[0] == "toy, m, budget_forcing, temperature 0"
    assert len({len(line) for line in lines[1:-1]}) == 1
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[3:-1]]
    assert cells[1] == ["budget 16", "5", "16.0", "5 of 5, all at 16", "0.0", "0.0 to 43.4"]
    assert cells[3][:4] == ["budget 64", "5", "52.0", "0 of 5"]
    assert cells[5][:4] == ['budget 64, "Wait" x2', "5", "63.4", "3 of 5, all at 64"]
    assert lines[-1].startswith("Control 100% (100% of samples)   Scaling +")
    data[1]["num_thinking_tokens"] = 17
    assert "5 of 5, 1 OVER IT" in format_thinking_table(data)


def test_a_name_cannot_command_a_terminal():
    table = format_thinking_table(study_rows(benchmarks=("a\x1b[2J", "b\u202e"), models=("m\x07", "n\ud800")))
    assert "a\\x1b[2J, m\\x07, " in table and "b\\u202e, n\\ud800, " in table and table.replace("\n", "").isprintable()


def test_the_voting_table_has_a_block_per_setting():
    table = format_voting_table(study_rows(samples=4, budgets=(64,)))
    assert table.count("maj@k %") == 3 and 'temperature 1, budget 64, "Wait" x2' in table
    block = table.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in block[3:]] == ["1", "2", "4"]
    assert len({len(line) for line in block[1:]}) == 1
