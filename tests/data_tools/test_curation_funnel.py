"""`funnel.py`: the table, the figure, and the fate of a row, on a small curation."""

import io

import matplotlib.image
import numpy as np
import pytest

from data_tools.curation.funnel import explain, funnel_figure, funnel_table
from s1jax.runtime.errors import UserError
from tests.support.curation_results import bad_row, curated, pool_row


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    rows = [pool_row(i) for i in range(40)]
    rows[3] = bad_row(3)
    rows[5] = pool_row(25, file="data/pool0.jsonl", line=6)  # a copy
    return curated(tmp_path_factory.mktemp("stages"), rows).results


def summaries(results):
    return [result.summary for result in results]


def test_the_table_has_a_line_for_each_stage_and_for_its_reasons(results):
    cells = funnel_table(summaries(results)).cells
    assert cells == [
        ("collect", "40", "39", "1"),
        ("  - question is empty", "", "", "1"),
        ("quality", "39", "33", "6"),
        ("  - the answer is wrong", "", "", "6"),
        ("lengths", "33", "33", "0"),
        ("domains", "33", "33", "0"),
        ("selection", "33", "10", "23"),
        ("  - not drawn", "", "", "23"),
    ]


def test_rare_reasons_are_summed_up_and_no_reason_breaks_the_table():
    reasons = {"long\n\x1b[31m" + "x" * 100: 9, "b": 5, "c": 3, "d": 1}
    stage = dict(name="quality", num_rows=20, num_kept=2, reasons=reasons)
    table = funnel_table([stage], num_reasons=2)
    assert [cell[3] for cell in table.cells] == ["18", "9", "5", "4"]
    assert table.cells[1][0].startswith("  - long \\x1b[31mxxx") and len(table.cells[1][0]) <= 74
    assert table.cells[3][0] == "  - 2 more reasons"
    assert len(table.text().splitlines()) == 7


def test_the_bars_of_the_figure_are_as_long_as_the_counts_and_the_bytes_are_always_the_same():
    stages = [
        dict(name="collect", num_rows=1000, num_kept=1000, reasons={}),
        dict(name="quality", num_rows=1000, num_kept=600, reasons={"a": 400}),
        dict(name="selection", num_rows=600, num_kept=150, reasons={"not drawn": 450}),
    ]
    image = funnel_figure(stages)
    assert image == funnel_figure(stages)
    pixels = (matplotlib.image.imread(io.BytesIO(image))[..., :3] * 255).round().astype(int)
    blue, grey = ((np.abs(pixels - colour).sum(axis=2) < 6) for colour in ((0, 0x72, 0xB2), (0xD9, 0xD9, 0xD9)))
    bars = [row for row in range(len(pixels)) if blue[row].sum() > 40]
    middles = [group[len(group) // 2] for group in np.split(bars, np.flatnonzero(np.diff(bars) > 1) + 1)]
    full = blue[middles[0]].sum()
    assert [round(blue[row].sum() / full, 2) for row in middles] == [1, 0.6, 0.15]
    assert [round(grey[row].sum() / full, 2) for row in middles] == [0, 0.4, 0.45]


def test_a_funnel_without_rows_is_drawn():
    assert funnel_figure([dict(name="collect", num_rows=0, num_kept=0, reasons={})]).startswith(b"\x89PNG")


def test_the_fate_of_a_rejected_row_ends_with_its_stage_reason_and_detail(results):
    text = explain(results, pool_row(7)["id"])
    assert text.splitlines()[0] == f"row 7 of AIME, data/pool0.jsonl:8, id {pool_row(7)['id']}"
    assert text.splitlines()[-2:] == [
        "  quality         rejected: the answer is wrong (a multiple of 14)",
        "    correct: False",
    ]
    assert "  collect         kept\n" in text and "    question: 'What is 7 + 7?'\n" in text


def test_the_fate_of_a_chosen_and_of_an_undrawn_row_names_all_stages_and_what_they_added(results):
    verdicts = [v for v in results[-1].verdicts().to_pylist() if v["row"] not in (5, 25)]  # copies
    chosen = next(v["row"] for v in verdicts if v["reason"] is None)
    undrawn = next(v for v in verdicts if v["reason"] is not None)
    for row in (chosen, undrawn["row"]):
        text = explain(results, f"pool{row // 20}.jsonl:{row % 20 + 1}")
        stages = [line.split()[0] for line in text.splitlines() if line[2:3].strip() and line[:2] == "  "]
        assert stages[:5] == ["collect", "quality", "lengths", "domains", "selection"]
        length = len(pool_row(row)["thinking"].split())
        assert f"\n    num_thinking_tokens: {length}\n" in text
        assert f"\n    domain: '{str(2 * row)[-1]}'\n" in text
    assert explain(results, pool_row(chosen)["id"]).endswith("\n  chosen")
    assert text.splitlines()[-1] == f"  selection       rejected: not drawn ({undrawn['detail']})"


def test_each_row_with_an_id_has_its_fate_and_a_row_that_collect_rejected_is_found_by_its_line(results):
    text = explain(results, pool_row(25)["id"])
    assert [line.split(", ")[1] for line in text.splitlines() if line.startswith("row")] == [
        "data/pool0.jsonl:6",
        "data/pool1.jsonl:6",
    ]
    text = explain(results, "data/pool0.jsonl:4")
    assert text.splitlines()[0] == "row 3, data/pool0.jsonl:4, id none"
    assert "rejected: question is empty" in text and "    raw: '{\"n\": 3}'" in text


def test_a_run_that_has_not_selected_yet_does_not_say_that_a_row_is_chosen(results):
    assert explain(results[:3], pool_row(8)["id"]).endswith("\n  kept by every stage so far")


@pytest.mark.parametrize("row_id", ["", "0123456789abcdef", "pool0.jsonl:21", "ool0.jsonl:2", "pool0.jsonl", ":3"])
def test_an_unknown_id_is_refused_with_what_an_id_looks_like(results, row_id):
    with pytest.raises(
        UserError, match=r"no row of the pool has the id .*: an id is the first 16 hex digits of sha256"
    ):
        explain(results, row_id)


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path):
    rows = [pool_row(i) for i in range(12)]
    rows[2] = pool_row(2, source="\x1b[2J\nother", file="a\x07.jsonl")
    text = explain(curated(tmp_path, rows).results, rows[2]["id"])
    assert text.splitlines()[0].startswith("row 2 of \\x1b[2J other, a\\x07.jsonl:3")
    assert not {"\x1b", "\x07"} & {*text}
