"""`run_tables.py`: all tables of a run, as text, Markdown and JSON."""

import json

from s1jax.results.control import summarise_curves
from s1jax.results.metrics import thinking_curve, voting_curve
from s1jax.results.run_tables import format_tables, holds_tables, write_tables
from s1jax.results.tables import format_thinking_table
from tests.support.samples import sample, study_rows


def two_seeds():
    return [row | {"seed": seed} for seed in (0, 1) for row in study_rows(samples=2)]


def test_a_table_appears_only_if_the_rows_have_what_it_is_about():
    plain = [sample()]
    assert format_tables(plain) == format_thinking_table(plain)
    text = format_tables(two_seeds())
    assert text.startswith(format_thinking_table(two_seeds()))
    blocks = text.split("\n\n")
    assert [block.split(":")[0].split(",")[0] for block in blocks[1:]] == [
        "Answers that an ignored stop turned",
        "Forced answers",
        "Accuracy of each seed",
    ]
    assert 'budget 64, "Wait" x1 to x2' in blocks[1] and "exchanges" in blocks[1]
    assert "more than 15 tokens, 3 times the median" in blocks[2]
    assert "seed 0 %" in blocks[3] and "deviation: standard deviation over seeds" in blocks[3]
    many = format_tables([sample(temperature=1.0, seed=s) for s in range(11)])
    assert "seed 0 %" not in many and "highest %" in many


def test_a_limit_below_the_length_of_an_escape_is_said():
    rows = [sample(max_answer_tokens=15), sample(max_answer_tokens=15, max_thinking_tokens=8, num_thinking_tokens=8)]
    assert "no answer can be too long, because --max-answer-tokens is 15" in format_tables(rows)
    assert "no answer can be too long" not in format_tables(rows, multiple=2)
    assert "too long: not known" in format_tables(rows[1:])


def test_json_holds_the_points_of_every_table_and_markdown_shows_them(tmp_path):
    rows, path = two_seeds(), tmp_path / "new" / "tables.md"
    write_tables(rows, path)
    content = json.loads(path.with_suffix(".json").read_text())
    assert list(content) == ["curves", "control", "votes", "turns", "escapes", "seeds", "grid"] and all(
        content.values()
    )
    assert content["curves"] == json.loads(json.dumps(thinking_curve(rows)))
    assert content["votes"] == json.loads(json.dumps(voting_curve(rows)))
    (control,), (summary,) = content["control"], summarise_curves(rows)
    assert control["method"] == "budget_forcing" and control.items() >= summary.items()
    assert holds_tables(path.with_suffix(".json")) and not holds_tables(path)
    lines = path.read_text().splitlines()
    assert sum(line.startswith("## ") for line in lines) == 4 + 6 + 2
    for i, line in enumerate(lines):
        if line.startswith("|:--"):
            assert lines[i - 1].count("|") == line.count("|") == lines[i + 1].count("|")


def test_a_hostile_name_stays_text_in_markdown(tmp_path):
    name = "m|x<script>`*[a](b)\n## y\x1b[2J"
    write_tables(study_rows(models=(name, "n")), tmp_path / "tables.md")
    text = (tmp_path / "tables.md").read_text()
    assert r"m\|x\<script\>\`\*\[a\](b) ## y\\x1b\[2J" in text and "<script" not in text.replace(r"\<", "")
    assert "\x1b" not in text and "\n## y" not in text
