"""Ends of thinking of several tokens: the budget-forcing transition against a slow reference on text, and its mutants."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.decode import budget
from s1jax.decode.ends import find_ends
from tests.support.budget_search import Game, copy_of, mismatches, row_settings
from tests.support.ends_reference import Language, Row, Settings, reference_step

PAD, PLAIN, NEWLINE, WAIT_A, WAIT_NL, NL, ANSWER_1, ANSWER_2, FINAL_1, FINAL_2 = range(10)
COMMON = ("P", "c", "\n", "wa", "w\n", "n\n", "A", "B", "F", "G")
"""`wa` is an ignore string that ends as an end begins: it must not become part of a match."""
ADDED = {"E": "<E>", "Z": "<Z>"}
"""Characters that stand for added tokens, and the names of these."""


def language(tokens: Sequence[str], ends: Sequence[str], forced_ends: Sequence[str] = ()) -> Language:
    """Sampled tokens are `tokens`, a plain one and a line break. In place of a token that begins an end, the plain one is drawn."""
    sampled = {len(COMMON) + i: text for i, text in enumerate(tokens)} | {PLAIN: "c", NEWLINE: "\n"}

    def begins_end(text: str) -> bool:
        rests = [text[i:] for i in range(len(text))]
        return any(end in text or any(end.startswith(rest) for rest in rests) for end in ends)

    redraw = {i: PLAIN if begins_end(text) else i for i, text in sampled.items()}
    return Language(
        (*COMMON, *tokens), tuple(ends), tuple(forced_ends), redraw, frozenset({NEWLINE}),
        newline=(NL,), answer=(ANSWER_1, ANSWER_2), final=(FINAL_1, FINAL_2),
    )  # fmt: skip


LANGUAGES = {
    "split in every way": language(("a", "b", "ab", "xa", "bx", "aa"), ("ab",)),
    "overlapping itself": language(("a", "b", "aa", "ab", "aab"), ("aab",)),
    "beginning again inside": language(("abc", "ab", "b", "ca"), ("abcab",)),
    "one inside another": language(("a", "b", "x", "ab", "xa"), ("xaby", "ab", "b")),
    "added tokens, one end forced": language(("E", "0", "a", "ab", "b", "Z"), ("E0", "Eab", "Z"), ("E0",)),
    "a single token": language(("Z", "a", "b"), ("Z",)),
}


def vocabulary_of(words: Language) -> budget.Vocabulary:
    def named(text: str) -> str:
        return "".join(ADDED.get(character, character) for character in text)

    size = len(words.texts)
    ids = {name: words.texts.index(text) for text, name in ADDED.items() if text in words.texts}
    texts, ends, forced = (list(map(named, some)) for some in (words.texts, words.ends, words.forced_ends))
    return budget.Vocabulary(
        exists=jnp.ones(size, bool),
        ends=find_ends(ends, forced, texts, ids, size),
        ends_answer=jnp.isin(jnp.arange(size), jnp.array(sorted(words.ends_answer))),
        ends_in_newline=jnp.array([text.endswith("\n") for text in words.texts]),
        answer=jnp.array(words.answer, jnp.int32),
        newline=jnp.array(words.newline, jnp.int32),
        pad=jnp.array(PAD, jnp.int32),
    )


def grid(budgets=(0, 1, 2, 4, 6), minimums=(0, 3), ignores=(0, 1, 2)) -> list[Settings]:
    strings: list[tuple[int, ...]] = [(), (WAIT_A,), (WAIT_NL, WAIT_A), (WAIT_NL,)]
    return [
        Settings(*values) for values in itertools.product(budgets, minimums, ignores, strings, (2,), (PLAIN, NEWLINE))
    ]


ATTEMPTS = {"": budget.Tries.NOT, "natural": budget.Tries.NATURAL, "forced": budget.Tries.FORCED}


def game(words: Language, settings: Sequence[Settings]) -> Game:
    def step(setting: int, row: Row, sampled: int) -> tuple[Row, dict[str, int]]:
        now = reference_step(words, settings[setting], row, sampled)
        emits = now.token is not None
        after = now.row
        return after, dict(
            token=now.token if emits else -1, place=now.place, forced=now.forced, tries=ATTEMPTS[now.attempt],
            num_thinking=after.counted, num_tokens=after.counted + len(after.loose) + after.after_thinking,
            num_ignored=after.ignored, num_answer=after.answer, done=after.phase == "done", stopped=after.stopped,
        )  # fmt: skip

    def seen(now: budget.Step, state: budget.RowState) -> dict[str, np.ndarray]:
        return dict(
            token=np.where(now.emits, now.token, -1), place=now.place, forced=now.forced, tries=now.tries,
            num_thinking=state.num_thinking, num_tokens=state.num_tokens,
            num_ignored=state.num_ignored, num_answer=state.num_answer,
            done=state.phase == budget.Phase.DONE, stopped=state.stopped,
        )  # fmt: skip

    def relevant(state: budget.RowState) -> budget.RowState:
        # Only the tokens that do not count yet, and the one before them, can matter. With all of them there are far too many states.
        age = np.arange(state.recent.shape[1])[::-1]
        loose = np.where(state.phase == budget.Phase.THINK, state.num_tokens - state.num_thinking, 0)
        return state._replace(recent=np.where(age <= loose[:, None], state.recent, -1))

    return Game(
        vocabulary_of(words),
        row_settings(words.final, settings),
        last_tokens=[s.last_prompt_token for s in settings],
        redraw=words.redraw,
        begin=lambda setting: Row("think", settings[setting].last_prompt_token),
        step=step,
        seen=seen,
        relevant=relevant,
    )


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_script_of_sampled_tokens_gives_what_the_reference_gives(name):
    words = LANGUAGES[name]
    assert list(itertools.islice(mismatches(budget, game(words, grid()), length=10), 5)) == []


# Each mutant is one plausible mistake: (text of budget.py, what it becomes).
MUTANTS = {
    "tokens_of_a_match_count_at_once": ("jnp.where(in_match, first, place", "jnp.where(in_match & answering, first, place"),
    "minimum_looked_at_where_the_end_is_complete": ("(first < settings.min", "(state.num_tokens < settings.min"),
    "end_that_begins_past_the_budget_was_tried": (" & (first < settings.max_thinking_tokens)", ""),
    "tokens_past_the_budget_count": ("jnp.minimum(counted, settings.max_thinking_tokens)", "counted"),
    "tokens_past_the_budget_stay": ("[num_past_budget, num_before]", "[0, num_before]"),
    "end_stays_in_the_trace": ("[num_past_budget, num_before]", "[num_past_budget, 0]"),
    "newline_looked_for_in_the_end_itself": ("num_states - 1 - num_taken_back[:, None]", "num_states - 1 + 0 * place[:, None]"),
    "draws_again_behind_the_end": ("draw_again & (num_before > 0)", "draw_again & (num_before < 0)"),
    "the_same_end_may_begin_again": (" | only_takes_back", ""),
    "match_goes_on_through_an_injection": ("jnp.where(in_match & (match < num_states)", "jnp.where((match < num_states)"),
    "forced_end_writes_the_natural_delimiter": ("(match > num_states),  # 6a", "(match < 0),  # 6a"),
    "forced_end_is_a_natural_attempt": ("[tries & (match > num_states), tries]", "[tries & (match < 0), tries]"),
    "natural_end_is_a_forced_attempt": ("[Tries.FORCED, Tries.NATURAL]", "[Tries.FORCED, Tries.FORCED]"),
    "place_is_not_taken_back": ("num_tokens=place + emits", "num_tokens=state.num_tokens + emits"),
    "recent_tokens_shift_the_wrong_way": ("[state.recent[:, 1:], emitted", "[state.recent[:, :-1], emitted"),
}  # fmt: skip


def first_mismatch(source: str) -> str | None:
    broken, settings = copy_of(budget, source), grid(budgets=(0, 2, 4), minimums=(0, 3), ignores=(0, 1))
    for name in ("added tokens, one end forced", "overlapping itself"):
        compared = game(LANGUAGES[name], settings)
        if found := next(mismatches(broken, compared, length=7, chunk=4096), None):
            return found
    return None


def test_comparison_passes_on_an_unbroken_copy():
    assert first_mismatch(Path(budget.__file__).read_text()) is None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_comparison_fails_when_a_rule_is_broken_on_purpose(mutant):
    old, new = MUTANTS[mutant]
    source = Path(budget.__file__).read_text()
    assert source.count(old) == 1, f"update the mutant: budget.py holds {old!r} {source.count(old)} times, not once"
    assert first_mismatch(source.replace(old, new)) is not None


# Invariants, on models that are functions of the text so far: their draws do not depend on the step, as those of a script do.


class Trace(NamedTuple):
    tokens: tuple[int, ...]
    attempts: tuple[budget.Attempt, ...]
    num_thinking: int
    num_ignored: int
    first_of_delimiter: int


def think(words: Language, settings: Settings, seed: int) -> Trace:
    """Run until the delimiter begins."""
    vocabulary, table = vocabulary_of(words), row_settings(words.final, [settings])
    state = budget.init_state(vocabulary, table, jnp.array([settings.last_prompt_token]), budget.Phase.THINK, 0)
    tokens: list[int] = []
    attempts = []
    while state.phase[0] == budget.Phase.THINK:
        draw = random.Random(repr((seed, tokens))).choice(list(words.redraw))
        now, state = STEP(vocabulary, table, state, jnp.array([draw]), jnp.array([words.redraw[draw]]))
        place = int(now.place[0])
        if now.tries[0]:
            attempts.append(budget.Attempt(place, bool(now.tries[0] == budget.Tries.NATURAL)))
        tokens[place:] = now.token.tolist() if now.emits[0] else []
    count = int(state.num_thinking[0])
    return Trace(tuple(tokens[:count]), tuple(attempts), count, int(state.num_ignored[0]), int(state.queue[0, 0]))


STEP = jax.jit(budget.transition)


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_limit_ends_a_larger_trace_where_it_ends_its_own(name):
    words, checked = LANGUAGES[name], 0
    for seed, ignore in itertools.product(range(4), [(), (WAIT_A,), (WAIT_NL, WAIT_A)]):
        largest = think(words, Settings(12, 5, 3, ignore, 2, PLAIN), seed)
        assert [place for place, _ in largest.attempts] == sorted({place for place, _ in largest.attempts})
        for maximum, minimum, num_ignore in itertools.product((0, 1, 2, 3, 5, 8, 12), (0, 5), (0, 1, 3)):
            if minimum > maximum:
                continue
            own = think(words, Settings(maximum, minimum, num_ignore, ignore, 2, PLAIN), seed)
            end = budget.find_end(budget.Limits(maximum, minimum, num_ignore), largest.attempts)
            assert own.tokens == largest.tokens[: end.num_thinking] and own.num_ignored == end.num_ignored
            assert end.is_natural == (own.first_of_delimiter == ANSWER_1)
            checked += 0 < end.num_thinking < maximum
    assert checked > 15
