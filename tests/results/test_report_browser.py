"""The report in a headless Chromium: filters, search, an answer that is read, keys, a phone, and texts that try to be code."""

import json
from collections import Counter

import pytest

from s1jax.results.report import write_report
from s1jax.results.turns import turn_of, wait_pairs
from tests.support.chromium import Chromium
from tests.support.samples import sample

pytestmark = pytest.mark.integration

HOSTILE = (
    "<script>window.ran = 1; alert(1)</script><img src=http://example.invalid/x onerror='window.ran = 1'></script></div>"
    "<a href='javascript:window.ran = 1' onclick='window.ran = 1'>x</a><style>*{display:none}</style>"
    "\x1b[31mred\x07 \0 \u202eright-to-left\u2066 \ud800 half \U000e0041 tag \u200b zero"
)
VISIBLE = (
    r"<script>window.ran = 1; alert(1)</script><img src=http://example.invalid/x onerror='window.ran = 1'></script></div>"
    r"<a href='javascript:window.ran = 1' onclick='window.ran = 1'>x</a><style>*{display:none}</style>"
    r"\x1b[31mred\x07 \x00 \u202eright-to-left\u2066 \ud800 half \u{e0041} tag \u200b zero"
)
QUESTION = "How many apples are left?"


def rows_of_a_study():
    """Traces of two models on 40 problems with three samples, each under three budgets and with up to two Waits."""
    rows = []
    for i in range(40):
        for model in ("small", "large"):
            for k in range(3):
                parts = [f"Apples {i}: {part}. {'pear ' if (i + k) % 3 == part else ''}" * 8 for part in range(3)]
                text = "Wait".join(parts)
                points = [(budget, 0, text[:budget]) for budget in (0, 16, 64)]
                points += [(4096, waits, "Wait".join(parts[: waits + 1])) for waits in range(3)]
                for n, (budget, waits, thinking) in enumerate(points):
                    verdict = ("equal", "different", "no_answer", "timed_out")[(i * 7 + k * n + waits) % 4]
                    rows.append(
                        sample(
                            problem_id=f"p{i}", benchmark=f"fruit{i % 2}", model=model, sample_index=k, temperature=1.0,
                            thinking_format="s1", max_thinking_tokens=budget, num_ignore=waits, num_ignored=waits, ignore_text="Wait",
                            thinking=thinking, num_thinking_tokens=len(thinking), verdict=verdict, correct=verdict == "equal",
                            extracted=None if verdict == "no_answer" else str(i), answer_text=f"\nFinal Answer: {i} plums",
                        )
                    )  # fmt: skip
    return rows


ROWS = rows_of_a_study()
BAD = sample(
    problem_id=HOSTILE, benchmark=HOSTILE, model=HOSTILE, thinking=HOSTILE, answer_text=HOSTILE, extracted=HOSTILE,
    ignore_text=HOSTILE, num_ignore=1, num_ignored=1, wrap_up=HOSTILE, prompt_suffix=HOSTILE, judge=HOSTILE, commit=HOSTILE,
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(tmp_path_factory.mktemp("browser"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    write_report(ROWS, folder / "good.html", "good", {("fruit0", "p0"): (QUESTION, "0")})
    write_report([BAD, *ROWS[:50]], folder / "bad.html", HOSTILE, {(HOSTILE, HOSTILE): (HOSTILE, HOSTILE)})
    return folder


@pytest.fixture
def page(browser, reports):
    """The good report, freshly opened at its answers."""
    yield opened(browser, reports / "good.html", "#answers")
    assert browser.messages == []


def opened(browser, path, place=""):
    browser.resize(1280, 800)
    browser.call("Page.navigate", url="about:blank")
    browser.requests.clear()
    browser.messages.clear()
    browser.open(path.as_uri() + place)
    return browser


def listed(page):
    """The numbers in the file of the rows that are listed."""
    return sorted(page.run("page.rows.map((row) => page.report.columns.number[row])"))


def expected(fits):
    return [number for number, row in enumerate(ROWS, 1) if fits(row)]


def shown(page):
    """The text of the answer that is read."""
    page.wait("document.querySelector('#detail .text')")
    return page.run("$('detail').innerText")


def test_filters_list_exactly_the_rows_that_fit(page):
    assert listed(page) == expected(lambda row: True)
    for value, verdict in enumerate(("equal", "different", "no_answer", "timed_out")):
        page.choose("verdict", value)
        assert listed(page) == expected(lambda row, verdict=verdict: row["verdict"] == verdict)
    turns = {id(row): "" for row in ROWS} | {id(b): turn_of(a, b) for a, b in wait_pairs(ROWS)}
    assert min(Counter(turns.values()).values()) > 20
    page.choose("verdict", -1)
    for value, wanted in ((1, {"to right"}), (2, {"to wrong"}), (3, {"to right", "to wrong"})):
        page.choose("turn", value)
        assert listed(page) == expected(lambda row, wanted=wanted: turns[id(row)] in wanted)
    page.choose("model", page.run("page.report.models.indexOf('large')"))
    page.choose("condition", page.run("page.report.conditions.indexOf('budget 4,096, \"Wait\" x2')"))
    fits = expected(lambda row: turns[id(row)] and row["model"] == "large" and row["num_ignore"] == 2)
    assert listed(page) == fits and fits
    assert page.run("$('count').textContent") == f"{len(fits)} of {len(ROWS):,} answers"
    page.run("$('reset').click()")
    page.choose("benchmark", 1)
    assert listed(page) == expected(lambda row: row["benchmark"] == "fruit1")
    page.run("$('problem').value = 'p3'; $('problem').dispatchEvent(new Event('input'))")
    assert listed(page) == expected(lambda row: row["problem_id"] == "p3")


def test_search_finds_a_text_in_thinking_and_answers_whatever_its_case(page):
    def search(text):
        page.run(f"$('search').value = {json.dumps(text)}; page.search()")
        assert page.run("$('progress').hidden")
        return listed(page)

    texts = ("PEAR", "plums", "Apples 7: 2", "2. Wait", "17 plums", ". *", "no such text")
    for text in texts:
        lower = text.lower()
        assert search(text) == expected(
            lambda row, lower=lower: lower in f"{row['thinking']}\n{row['answer_text']}".lower()
        ), text
    assert search(QUESTION) == expected(lambda row: row["problem_id"] == "p0"), "questions are searched, too"
    page.choose("verdict", 0)
    assert search("pear") == expected(lambda row: row["correct"] and "pear" in row["thinking"])
    page.run(f"page.go(page.rows[{len(listed(page)) - 1}])")
    shown(page)
    hits = page.run("[...document.querySelectorAll('#detail .text .hit')].map((hit) => hit.textContent)")
    assert hits and set(hits) == {"pear"}


def test_an_answer_shows_question_waits_forks_budget_end_and_grade(page):
    def read(number):
        page.run(f"page.go(page.report.columns.number.indexOf({number}))")
        page.wait(f"[...document.querySelectorAll('details dd')].some((d) => d.textContent === '{number}')")
        return shown(page)

    number, row = next(
        (n, row) for n, row in enumerate(ROWS, 1) if row["num_ignore"] == 2 and row["problem_id"] == "p0"
    )
    text = read(number)
    assert QUESTION in text and "The model ended its thinking here" in text and "Forks of this trace" in text
    waits = page.run("[...document.querySelectorAll('#detail .text .wait')].map((wait) => wait.textContent)")
    assert waits == ["Wait", "Wait"]
    forks = page.run(
        "[...document.querySelectorAll('#detail .text .fork')].map((fork) => fork.textContent.slice(2, -2))"
    )
    assert forks == ["budget 0", "budget 16", "budget 64", "budget 4,096", 'budget 4,096, "Wait" x1']
    before = page.run(
        "[...document.querySelectorAll('#detail .text .wait')].map((wait) => wait.previousSibling.className.split(' ')[0])"
    )
    assert before == ["fork", "fork"], "each Wait stands where a fork ended"
    thinking = page.run("(() => { const t = document.querySelectorAll('#detail .text')[1].cloneNode(true);"
                        " t.querySelectorAll('.fork').forEach((f) => f.remove()); return t.textContent; })()")  # fmt: skip
    assert thinking == row["thinking"]
    page.run("document.querySelectorAll('#detail .text .fork')[1].click()")
    page.wait("$('detail').innerText.includes('The budget ended the thinking here, after 16 tokens')")
    assert page.run("[...document.querySelectorAll('#detail .forced')].map((f) => f.textContent)") == [
        "<|im_start|>answer",
        "Final Answer:",
    ]
    assert page.run("document.querySelectorAll('.forks button').length") == 6
    wrong = expected(lambda row: row["verdict"] == "different")[0]
    assert (
        "✗ wrong" in read(wrong) and page.run("document.querySelectorAll('#detail .text .extracted.bad').length") == 1
    )


def test_the_list_is_used_with_keys_and_draws_only_what_is_in_view(page):
    focused = "document.activeElement.id"
    assert page.run(focused) == "list"
    page.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert page.run("page.at") == 1 and page.run("document.querySelector('[aria-selected=true]').id") == "item1"
    assert page.run("getComputedStyle(document.querySelector('[aria-selected=true]')).outlineStyle") == "solid", (
        "focus is visible"
    )
    page.press("End")
    assert page.run("page.at") == len(ROWS) - 1
    assert page.run("document.querySelectorAll('.row').length") < 40
    page.wait(
        "$('list').getBoundingClientRect().bottom + 1 >= document.querySelector('[aria-selected=true]').getBoundingClientRect().bottom"
    )
    page.press("Enter")
    shown(page)
    page.wait(f"{focused} === 'detail'")
    page.press("Escape")
    page.wait(f"{focused} === 'list'")
    assert page.run("page.at") == len(ROWS) - 1 and page.run("location.hash") == "#answers"
    page.press("/")
    assert page.run(focused) == "search"
    page.press("p", "e", "a", "r")
    page.wait("$('progress').hidden && page.rows.length < page.report.size")
    page.press("Enter")
    assert page.run(focused) == "list"
    assert listed(page) == expected(lambda row: "pear" in row["thinking"])


def test_a_phone_shows_the_list_or_the_answer_and_nothing_is_wider_than_it(page):
    page.resize(390, 800)
    for place, view in (("results", "results"), ("answers", "browser"), ("answer-7", "detail")):
        page.run(f"location.hash = '{place}'")
        page.wait(f"$('{view}').offsetParent !== null")
        assert page.run(f"Math.max(document.documentElement.scrollWidth, $('{view}').scrollWidth)") <= 390, place
        assert page.run("[...document.querySelectorAll('main:not([hidden]) :is(h1,h3,p,button,select,.text)')]"
                        ".every((e) => e.getBoundingClientRect().right <= 391)"), place  # fmt: skip
    shown(page)
    assert page.run("$('browser').offsetParent") is None
    page.run("$('back').click()")
    page.wait("$('list').offsetParent !== null && $('detail').offsetParent === null")
    page.run("$('toggle').click()")
    assert page.run("$('verdict').offsetParent !== null && $('toggle').getAttribute('aria-expanded')") == "true"


def test_texts_that_try_to_be_code_show_as_text_and_nothing_runs_or_is_requested(browser, reports):
    opened(browser, reports / "bad.html", "#results")
    assert browser.run("document.title").startswith("<script>window.ran = 1")
    browser.run("location.hash = '#answers'")
    row = browser.run("page.report.columns.number.indexOf(1)")
    browser.run(f"page.go({row})")
    text = shown(browser)
    blocks = browser.run("[...document.querySelectorAll('#detail .text')].map((block) => block.textContent)")
    assert blocks == [VISIBLE] * 3, "question, thinking and answer"
    assert text.count(r"\u202eright-to-left\u2066") >= 6
    browser.run("$('search').value = 'onerror'; page.search()")
    assert browser.run("page.rows.length") == 1
    browser.run("document.querySelectorAll('*').forEach((e) => e.dispatchEvent(new Event('click')))")
    browser.run("new Promise((go) => setTimeout(go, 200))")
    assert browser.run("window.ran") is None and browser.messages == []
    assert browser.run("document.querySelectorAll('main script, main style, main a, main iframe').length") == 0
    assert {address.partition(":")[0] for address in browser.requests} == {"file", "data"}
    assert sum(address.startswith("file") for address in browser.requests) == 1, "the report itself"


def test_the_policy_stops_what_would_slip_through(browser, reports):
    opened(browser, reports / "good.html")
    attempts = (
        "document.body.innerHTML = '<img src=x onerror=\"window.ran = 1\">'",
        "document.body.setAttribute('onclick', 'window.ran = 1'); document.body.click()",
        "const s = document.createElement('script'); s.append('window.ran = 1'); document.body.append(s)",
        "window.eval('window.ran = 1')",
        "document.body.append(Object.assign(new Image(), {src: 'http://example.invalid/x'}))",
        "await fetch('http://example.invalid/y')",
        "document.body.setAttribute('style', 'display: none')",
        "document.head.append(Object.assign(document.createElement('base'), {href: 'http://example.invalid/'}))",
    )
    browser.run(
        "void addEventListener('securitypolicyviolation', (event) => (window.stopped ??= []).push(event.effectiveDirective))"
    )
    for number, code in enumerate(attempts, 1):
        browser.run(f"(async () => {{ try {{ {code} }} catch {{ }} }})()")
        browser.wait(f"window.stopped?.length >= {number}")
    assert browser.run("window.ran") is None
    assert {"img-src", "connect-src", "style-src-attr", "base-uri"} < set(browser.run("window.stopped"))
