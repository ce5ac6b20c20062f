"""`report.py`: one HTML file that holds every row, and nothing that a model wrote as markup."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from s1jax.results.report import is_report, write_report
from tests.support.samples import sample, study_rows

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\0\u202e\ud800{{script}}&amp;"


class Page(HTMLParser):
    """The elements of a page with their texts, and its blocks of data."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.blocks, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self.open and (name := self.open[-1][1].get("id")) and self.open[-1][0] == "script":
            self.blocks[name] = json.loads(gzip.decompress(base64.b64decode(data)))


def text_of(path):
    return path.read_bytes().decode()


def rows_of(page):
    """The texts of all rows as the page's script puts them together, by the number of the row in the file."""
    index = page.blocks["index"]
    traces = [trace for i in range(len(index["blocks"])) for trace in page.blocks[f"block{i}"]]
    units = [trace["thinking"].encode("utf-16-le", "surrogatepass") for trace in traces]
    forks = [
        (units[i][: 2 * fork["shared"]].decode("utf-16-le", "surrogatepass") + fork["tail"], fork)
        for i, trace in enumerate(traces)
        for fork in trace["forks"]
    ]
    return {
        number: (thinking, fork, {name: values[i] for name, values in index["columns"].items()})
        for i, ((thinking, fork), number) in enumerate(zip(forks, index["columns"]["number"], strict=True))
    }


def test_every_row_is_in_the_report_with_its_whole_texts(tmp_path, rng):
    """Random texts with surrogate pairs and halves; forks of one trace, some of which think something else in the end."""
    alphabet = ["a", "Wait", "é", "😀", "\ud800", "\n", "\0", "</script>"]
    rows = []
    for i in range(60):
        trace = "".join(rng.choice(alphabet, 40))
        for budget in (0, 3, 7, 40):
            thinking = trace[:budget] + ("" if i % 3 else "".join(rng.choice(alphabet, 2)))
            columns = {"thinking": thinking, "max_thinking_tokens": budget, "extracted": "a" if i % 2 else None}
            rows.append(sample(problem_id=f"p{i % 7}", sample_index=i, temperature=1.0, correct=i % 4 == 1, **columns))
    rng.shuffle(rows)
    write_report(rows, tmp_path / "r.html", "rows")
    page = Page(text_of(tmp_path / "r.html"))
    shown, index = rows_of(page), page.blocks["index"]
    assert len(shown) == len(rows)
    assert [setting["columns"]["max_thinking_tokens"] for setting in index["settings"]] == [0, 3, 7, 40]
    for number, row in enumerate(rows, 1):
        thinking, fork, columns = shown[number]
        expected = row["thinking"].encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        assert thinking.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") == expected, number
        assert (fork["answer"], fork["extracted"]) == (row["answer_text"], row["extracted"])
        assert index["problems"][columns["problem"]]["id"] == row["problem_id"]
        settings = index["settings"][columns["setting"]]
        assert (
            settings["columns"]["max_thinking_tokens"] == row["max_thinking_tokens"] == int(settings["condition"][7:])
        )
        assert ["equal", "different", "no_answer"][columns["verdict"]] == row["verdict"]


def test_a_trace_is_stored_once_for_all_its_forks(tmp_path, rng):
    rows = []
    for i in range(20):
        trace = rng.bytes(2000).hex()
        rows += [sample(problem_id=f"p{i}", thinking=trace[: 40 * b], max_thinking_tokens=b) for b in range(1, 101)]
    write_report(rows, tmp_path / "r.html", "rows")
    figures_and_index = 250_000
    assert (
        (tmp_path / "r.html").stat().st_size
        < 20 * 4000 + figures_and_index
        < sum(len(r["thinking"]) for r in rows) / 10
    )


def test_no_text_of_a_file_becomes_markup(tmp_path):
    texts = {"thinking": HOSTILE, "answer_text": HOSTILE, "extracted": HOSTILE, "ignore_text": HOSTILE}
    names = {"model": HOSTILE, "benchmark": HOSTILE, "problem_id": HOSTILE, "wrap_up": HOSTILE, "commit": HOSTILE}
    rows = [sample(**texts, **names, num_ignore=1, sample_index=i, temperature=1.0) for i in range(2)]
    write_report(rows, tmp_path / "bad.html", HOSTILE, {(HOSTILE, HOSTILE): (HOSTILE, HOSTILE)})
    write_report(study_rows(samples=2), tmp_path / "good.html", "rows")
    bad, good = (Page(text_of(tmp_path / f"{name}.html")) for name in ("bad", "good"))
    kinds = [{(tag, *sorted(attributes)) for tag, attributes in page.elements} for page in (bad, good)]
    assert kinds[0] == kinds[1]
    scripts = [[a for tag, a in page.elements if tag == "script" and "type" not in a] for page in (bad, good)]
    assert scripts == [[{}], [{}]]
    written = (tmp_path / "bad.html").read_bytes()
    assert not any(character in written.decode() for character in "\x1b\0\u202e")


def test_the_policy_of_the_page_allows_its_own_script_and_style_and_nothing_else(tmp_path):
    write_report(study_rows(), tmp_path / "r.html", "rows")
    text = text_of(tmp_path / "r.html")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<body>")
    hashes = [
        base64.b64encode(hashlib.sha256(re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)[0].encode()).digest()).decode()
        for tag in ("script", "style")
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert (rules["img-src"], rules["require-trusted-types-for"], rules["trusted-types"]) == (
        "data:",
        "'script'",
        "'none'",
    )
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert [rules["script-src"], rules["style-src"]] == [f"'sha256-{code}'" for code in hashes]
    assert (
        not re.search(r'(src|href)="(?!data:|#)', text)
        and "@import" not in text
        and "url(" not in text.split("<body>")[0]
    )


def test_the_figures_and_tables_of_all_tokens_are_shown_where_there_is_something_to_compare(tmp_path):
    for rows, num_figures in ((study_rows(), 1), (study_rows(samples=2), 3)):
        write_report(rows, tmp_path / "r.html", "rows")
        text = text_of(tmp_path / "r.html")
        assert text.count("<figure>") == num_figures
        assert (
            ("accuracy % at equal tokens: toy, m" in text)
            == ("Budgets and votes: toy, m" in text)
            == (num_figures == 3)
        )


def test_equal_rows_make_equal_data(tmp_path):
    for name in "ab":
        write_report(study_rows(samples=2), tmp_path / name, "rows")
    assert Page(text_of(tmp_path / "a")).blocks == Page(text_of(tmp_path / "b")).blocks


def test_a_report_is_told_from_other_pages(tmp_path):
    write_report(study_rows(), tmp_path / "r.html", "rows")
    (tmp_path / "other.html").write_text("<!doctype html><title>mine</title>")
    assert is_report(tmp_path / "r.html") and not is_report(tmp_path / "other.html")


def test_settings_of_two_models_may_be_one_condition_with_columns_of_their_own(tmp_path):
    rows = study_rows(models=("m", "n"))
    rows = [row | {"weights": f"{row['model']}123"} for row in rows]
    write_report(rows, tmp_path / "r.html", "rows")
    page = Page(text_of(tmp_path / "r.html"))
    settings = page.blocks["index"]["settings"]
    assert len(settings) == 2 * len({s["condition"] for s in settings}) == 12
    for number, (_, _, columns) in rows_of(page).items():
        assert settings[columns["setting"]]["columns"]["weights"] == rows[number - 1]["weights"]


@pytest.mark.parametrize("missing", ["verdict", "tokenizer", "prompt_suffix"])
def test_rows_of_an_earlier_format_are_shown(tmp_path, missing):
    rows = [row | {missing: None} for row in study_rows()]
    write_report(rows, tmp_path / "r.html", "rows")
    page = Page(text_of(tmp_path / "r.html"))
    assert [c["verdict"] for _, _, c in rows_of(page).values()].count(0) == sum(row["correct"] for row in rows)
