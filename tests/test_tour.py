"""The Python example of docs/tour.md runs as it is printed, and the pages link to files that exist."""

import re

import pytest

from s1jax.runtime.files import ROOT

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
SMALLER = {"max_thinking_tokens=256": "max_thinking_tokens=24, max_answer_tokens=8"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.integration
def test_the_example_of_the_tour_loads_a_model_and_prints_its_answer(tiny_model, capsys):
    (example,) = python_blocks("docs/tour.md")
    code = "\n".join(line for line in example.splitlines() if line.strip())
    assert code.count("\n") < 11, "the tour promises about ten lines"
    for old, new in (SMALLER | {MODEL: tiny_model}).items():
        assert code.count(old) == 1
        code = code.replace(old, new)
    names: dict = {}
    exec(compile(code, "docs/tour.md", "exec"), names)
    completion = names["completion"]
    assert 0 < completion.num_thinking <= 24
    thinking, _, answer = capsys.readouterr().out.partition("\n---\n")
    assert thinking and answer


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_and_headings_that_exist(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in targets:
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in slugs, target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "lab-log.md"], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|sh|md|toml))`", page.read_text()):
        assert (ROOT / name).exists() or (ROOT / "s1jax" / name).exists(), name


def test_the_readme_is_a_page():
    assert (ROOT / "README.md").read_text().count("\n") <= 130
