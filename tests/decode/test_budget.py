"""The budget-forcing transition against a slow reference: every script of sampled tokens, over a grid of settings.

Each end of thinking is a single token here. `test_budget_ends.py` has ends of several tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.decode import budget
from s1jax.decode.ends import find_ends
from tests.support.budget_reference import (
    ALPHABET,
    ANSWER_1,
    ANSWER_2,
    END_BOTH,
    END_THINKING,
    ENDS_ANSWER,
    ENDS_IN_NEWLINE,
    ENDS_THINKING,
    FINAL_1,
    FINAL_2,
    FINAL_3,
    LONG,
    NEWLINE,
    NL_1,
    OTHER,
    PAD,
    PLAIN,
    REAL,
    REDRAW,
    SHORT,
    VOCAB_SIZE,
    WAIT_1,
    WAIT_2,
    WAIT_NL,
    Delimiters,
    Row,
    Settings,
    reference_run,
    reference_step,
)
from tests.support.budget_search import Game, copy_of, mismatches, row_settings


def vocabulary_of(words: Delimiters) -> budget.Vocabulary:
    def mask(ids: set[int]) -> jax.Array:
        return jnp.zeros(VOCAB_SIZE, bool).at[jnp.array(sorted(ids))].set(True)

    added_tokens = {str(i): i for i in range(VOCAB_SIZE)}
    return budget.Vocabulary(
        exists=jnp.ones(VOCAB_SIZE, bool),
        ends=find_ends([str(i) for i in ENDS_THINKING], [], [""] * VOCAB_SIZE, added_tokens, VOCAB_SIZE),
        ends_answer=mask(ENDS_ANSWER),
        ends_in_newline=mask(ENDS_IN_NEWLINE),
        answer=jnp.array(words.answer, jnp.int32),
        newline=jnp.array(words.newline, jnp.int32),
        pad=jnp.array(PAD, jnp.int32),
    )


@functools.cache
def compiled_loop(words: Delimiters):
    @jax.jit
    def loop(settings, last, scripts, redraws):
        def step(state, drawn):
            now, state = budget.transition(vocabulary, settings, state, *drawn)
            return state, (now.token, now.forced, state)

        state = budget.init_state(vocabulary, settings, last, budget.Phase.THINK, 0)
        return jax.lax.scan(step, state, (scripts.T, redraws.T))[1]

    vocabulary = vocabulary_of(words)
    return loop


def run(words: Delimiters, rows: Sequence[Settings], scripts: np.ndarray):
    """Emitted ids, forced mask and states, all [T, B], of one script [B, T] for each row."""
    last = np.array([s.last_prompt_token for s in rows], np.int32)
    redraws = np.vectorize(REDRAW.get)(scripts).astype(np.int32)
    return jax.tree.map(
        np.asarray,
        compiled_loop(words)(row_settings(words.final_answer, rows), last, scripts.astype(np.int32), redraws),
    )


def grid(minimums=(0, 1, 2, 6), budgets=(0, 1, 2, 3, 5, 8), max_answers=(1, 2, 3)) -> list[Settings]:
    strings: list[tuple[int, ...]] = [(), (WAIT_1,), (WAIT_1, WAIT_2), (WAIT_1, WAIT_NL)]
    return [
        Settings(*values)
        for values in itertools.product(budgets, minimums, (0, 1, 2), strings, max_answers, (PLAIN, NEWLINE))
    ]


COUNTERS = {"num_thinking": "thinking", "num_ignored": "ignored", "num_answer": "answer"}


def game(words: Delimiters, settings: Sequence[Settings]) -> Game:
    def step(setting: int, row: Row, sampled: int) -> tuple[Row, dict[str, int]]:
        now = reference_step(words, settings[setting], row, sampled)
        counters = {ours: getattr(now.row, theirs) for ours, theirs in COUNTERS.items()}
        done = now.row.phase == "done"
        return now.row, dict(token=now.emitted, forced=now.forced, done=done, stopped=now.row.stopped) | counters

    def seen(now: budget.Step, state: budget.RowState) -> dict[str, np.ndarray]:
        done = state.phase == budget.Phase.DONE
        counters = {name: getattr(state, name) for name in COUNTERS}
        return dict(token=now.token, forced=now.forced, done=done, stopped=state.stopped) | counters

    return Game(
        vocabulary_of(words),
        row_settings(words.final_answer, settings),
        last_tokens=[s.last_prompt_token for s in settings],
        redraw=REDRAW,
        begin=lambda setting: Row("think", settings[setting].last_prompt_token in ENDS_IN_NEWLINE),
        step=step,
        seen=seen,
    )


# Every script.


@pytest.mark.parametrize("words", [SHORT, LONG, REAL], ids=["short", "long", "real"])
def test_every_script_of_sampled_tokens_gives_what_the_reference_gives(words):
    assert list(itertools.islice(mismatches(budget, game(words, grid()), length=12), 5)) == []


def test_all_65536_scripts_run_one_by_one_give_what_the_reference_gives():
    scripts = np.array(list(itertools.product(ALPHABET, repeat=8)))
    settings = [
        Settings(5, 2, 1, (WAIT_1, WAIT_NL), 1, PLAIN),
        Settings(3, 0, 2, (), 2, NEWLINE),
        Settings(8, 1, 2, (WAIT_1,), 3, PLAIN),
    ]
    rows = [s for s in settings for _ in scripts]
    emitted, forced, states = run(LONG, rows, np.tile(scripts, (len(settings), 1)))
    got = np.stack([emitted, forced, *(getattr(states, name) for name in COUNTERS)], axis=-1)

    step_of = functools.cache(reference_step)
    for i, s in enumerate(settings):
        wanted = np.zeros((8, len(scripts), 2 + len(COUNTERS)), np.int64)

        def walk(depth: int, row: Row, first: int, s=s, wanted=wanted) -> None:
            if depth == 8:
                return
            width = 4 ** (7 - depth)  # scripts that share the prefix of this node
            for j, sampled in enumerate(ALPHABET):
                begin = first + j * width
                step = step_of(LONG, s, row, sampled)
                counters = [getattr(step.row, name) for name in COUNTERS.values()]
                wanted[depth, begin : begin + width] = [step.emitted, step.forced, *counters]
                walk(depth + 1, step.row, begin)

        walk(0, Row("think", s.last_prompt_token in ENDS_IN_NEWLINE), 0)
        np.testing.assert_array_equal(got[:, i * len(scripts) : (i + 1) * len(scripts)], wanted)


# Each mutant is one plausible mistake: (text of budget.py, what it becomes).
MUTANTS = {
    "budget_one_too_small": ("state.num_thinking == settings.max", "state.num_thinking + 1 == settings.max"),
    "budget_looked_at_after_the_sampled_token": (
        "(state.num_thinking == settings.max_thinking_tokens)",
        "(state.num_thinking == settings.max_thinking_tokens) & (match < num_states)",
    ),
    "ignore_string_not_cut_by_the_budget": (
        "(state.num_thinking == settings.max_thinking_tokens)",
        "(state.num_thinking == settings.max_thinking_tokens) & (state.queue_index >= state.queue_length)",
    ),
    "ignore_string_not_counted_as_thinking": (
        "place + (emits & ~model_ends)",
        "state.num_thinking + (emits & ~model_ends & ~forced)",
    ),
    "forced_delimiter_counted_as_thinking": (
        "thinking & ~out_of_budget, jnp.minimum(counted, settings.max_thinking_tokens)",
        "thinking, counted",
    ),
    "natural_delimiter_counted_as_thinking": ("(emits & ~model_ends)", "emits"),
    "newline_looked_for_in_the_prompt_only": ("[state.recent[:, 1:], emitted", "[state.recent[:, 1:], token_before"),
    "newline_looked_for_in_the_sampled_token": ("[state.recent[:, 1:], emitted", "[state.recent[:, 1:], token"),
    "newline_of_the_prompt_not_looked_at": ("zeros[:, None] + last_token[:, None]", "zeros[:, None] + 0"),
    "minimum_one_too_large": ("(first < settings.min", "(first <= settings.min"),
    "one_ignore_too_many": ("state.num_ignored < settings.num_ignore", "state.num_ignored <= settings.num_ignore"),
    "minimum_needed_to_ignore": (
        "(state.num_ignored < settings.num_ignore) | (",
        "(state.num_ignored < settings.num_ignore) & (",
    ),
    "step_after_an_ignore_string_may_end_thinking": ("thinking & state.may_not_begin_end", "thinking & state.stopped"),
    "step_after_a_redraw_may_not_end_thinking": (
        "((swap | in_ignore) & queue_ends) | only_takes_back",
        "((swap | in_ignore) & queue_ends) | draw_again",
    ),
    "redraws_not_counted_as_ignored": ("state.num_ignored + (swap | draw_again)", "state.num_ignored + swap"),
    "minimum_not_counted_as_ignored": (
        "state.num_ignored + (swap | draw_again)",
        "state.num_ignored + ((swap | draw_again) & (state.num_ignored < settings.num_ignore))",
    ),
    "empty_ignore_string_lets_the_end_through": (
        "[vocabulary.pad, from_queue, redraw]",
        "[vocabulary.pad, from_queue, token]",
    ),
    "thinking_ended_only_by_ends_of_answers": ("(match >= num_states)", "vocabulary.ends_answer[token]"),
    "answer_ended_by_any_end_of_thinking": ("vocabulary.ends_answer[emitted]", "(match > 0)"),
    "ending_token_counted_in_the_answer": ("(answering & ~stops)", "answering"),
    "answer_one_token_too_long": ("num_answer == settings.max", "num_answer > settings.max"),
    "natural_delimiter_is_the_forced_one": ("as_queue(vocabulary.answer)", "as_queue(settings.final_ids)"),
    "done_rows_go_on": ("[vocabulary.pad, from_queue", "[token, from_queue"),
    "limit_counted_as_a_stop": ("state.stopped | stops", "state.stopped | stops | reaches_limit"),
}


def first_mismatch(source: str) -> str | None:
    settings = grid(minimums=(0, 2), budgets=(0, 3, 5), max_answers=(1, 2))
    broken = copy_of(budget, source)
    return next(mismatches(broken, game(LONG, settings), length=8, chunk=4096, compiled=False), None)


def test_comparison_passes_on_an_unbroken_copy():
    assert first_mismatch(Path(budget.__file__).read_text()) is None


@pytest.mark.parametrize("mutant", MUTANTS)
def test_comparison_fails_when_a_rule_is_broken_on_purpose(mutant):
    old, new = MUTANTS[mutant]
    source = Path(budget.__file__).read_text()
    assert source.count(old) == 1, f"update the mutant: budget.py holds {old!r} {source.count(old)} times, not once"
    assert first_mismatch(source.replace(old, new)) is not None


# The rules, seen one at a time.


def emitted_by(settings: Settings, script: Sequence[int], words: Delimiters = LONG) -> list[int]:
    return run(words, [settings], np.array([script]))[0][:, 0].tolist()


BASE = Settings(8, 0, 0, (WAIT_1, WAIT_2), 8, PLAIN)


@pytest.mark.parametrize(
    ("settings", "script", "wanted"),
    [
        # Ends by itself: the natural delimiter, without a newline; <|im_start|> in the answer is a token like others.
        (BASE, [PLAIN, END_THINKING, PLAIN, PLAIN, END_THINKING, END_BOTH, PLAIN],
         [PLAIN, ANSWER_1, ANSWER_2, PLAIN, END_THINKING, END_BOTH, PAD]),
        # Ended by the budget, after text that does not, and that does, end in a newline.
        (BASE._replace(maximum=2), [PLAIN] * 7, [PLAIN, PLAIN, NL_1, FINAL_1, FINAL_2, FINAL_3, PLAIN]),
        (BASE._replace(maximum=2), [PLAIN, NEWLINE] + [PLAIN] * 4, [PLAIN, NEWLINE, FINAL_1, FINAL_2, FINAL_3, PLAIN]),
        # At the budget an attempt to end is not looked at.
        (BASE._replace(maximum=1, num_ignore=2), [PLAIN, END_BOTH, PLAIN], [PLAIN, NL_1, FINAL_1]),
        # A budget of 0, after a prompt that does not, and that does, end in a newline.
        (BASE._replace(maximum=0), [PLAIN] * 3, [NL_1, FINAL_1, FINAL_2]),
        (BASE._replace(maximum=0, last_prompt_token=NEWLINE), [PLAIN] * 3, [FINAL_1, FINAL_2, FINAL_3]),
        # Two attempts are swapped for the ignore string; right after it, an end is drawn again and is no attempt.
        (BASE._replace(num_ignore=2), [END_THINKING, PLAIN, END_THINKING, END_BOTH, PLAIN, PLAIN, END_BOTH, PLAIN],
         [WAIT_1, WAIT_2, OTHER, WAIT_1, WAIT_2, PLAIN, ANSWER_1, ANSWER_2]),
        # The budget cuts an ignore string.
        (BASE._replace(maximum=2, num_ignore=1), [PLAIN, END_BOTH, PLAIN, PLAIN], [PLAIN, WAIT_1, NL_1, FINAL_1]),
        # Without a string, an end is drawn again, and the next may end.
        (BASE._replace(num_ignore=1, ignore=()), [END_THINKING, END_THINKING, PLAIN], [OTHER, ANSWER_1, ANSWER_2]),
        # The minimum swaps as often as it takes.
        (BASE._replace(minimum=2, ignore=(WAIT_1,)), [END_THINKING, PLAIN, END_BOTH], [WAIT_1, PLAIN, ANSWER_1]),
        # The answer's limit.
        (BASE._replace(max_answer=1), [END_BOTH, PLAIN, PLAIN, PLAIN], [ANSWER_1, ANSWER_2, PLAIN, PAD]),
    ],
)  # fmt: skip
def test_worked_examples(settings, script, wanted):
    assert emitted_by(settings, script) == wanted
    assert [step.emitted for step in reference_run(LONG, settings, script)] == wanted


# Invariants, on long random scripts.


def random_scripts(num_rows: int, length: int = 40, seed: int = 0) -> np.ndarray:
    probabilities = (0.1, 0.05, 0.2, 0.65)
    return np.random.default_rng(seed).choice(ALPHABET, size=(num_rows, length), p=probabilities)


def random_settings(num_rows: int, seed: int = 0) -> list[Settings]:
    rng = np.random.default_rng(seed)
    strings = [(), (WAIT_1,), (WAIT_1, WAIT_2), (WAIT_1, WAIT_NL)]
    return [
        Settings(*(int(rng.integers(n)) for n in (16, 12, 5)), strings[rng.integers(4)], int(rng.integers(1, 6)),
                 (PLAIN, NEWLINE)[rng.integers(2)])
        for _ in range(num_rows)
    ]  # fmt: skip


def test_thinking_never_passes_the_budget_and_reaches_it_when_the_budget_ended_it():
    settings = random_settings(2000)
    emitted, _, states = run(LONG, settings, random_scripts(2000))
    maximum = np.array([s.maximum for s in settings])
    assert (states.num_thinking <= maximum).all()
    ended_by_budget, ended_by_itself = (emitted == FINAL_1).any(axis=0), (emitted == ANSWER_1).any(axis=0)
    assert (ended_by_budget ^ ended_by_itself).all()
    assert ended_by_budget.sum() > 200 and ended_by_itself.sum() > 200
    np.testing.assert_array_equal(states.num_thinking[-1][ended_by_budget], maximum[ended_by_budget])
    minimum = np.array([min(s.minimum, s.maximum) for s in settings])
    assert (states.num_thinking[-1] >= minimum).all()


def test_a_budget_of_zero_thinks_nothing_whatever_else_is_asked():
    settings = [s._replace(maximum=0) for s in random_settings(200)]
    _, forced, states = run(LONG, settings, random_scripts(200))
    assert not states.num_thinking.any() and not states.num_ignored.any()
    assert forced[0].all()


def test_counters_count_what_was_emitted():
    settings = random_settings(1000)
    emitted, _, states = run(LONG, settings, random_scripts(1000))
    # All tokens are thinking, delimiter, answer, the one that stopped the answer, or padding after the end.
    delimiter = np.isin(emitted, [NL_1, ANSWER_1, ANSWER_2, FINAL_1, FINAL_2, FINAL_3]).sum(axis=0)
    total = (
        states.num_thinking[-1] + delimiter + states.num_answer[-1] + states.stopped[-1] + (emitted == PAD).sum(axis=0)
    )
    assert (total == len(emitted)).all()


def traces(settings: list[Settings], scripts: np.ndarray) -> tuple[list[list[int]], budget.RowState]:
    emitted, _, states = run(LONG, settings, scripts)
    return [emitted[:n, i].tolist() for i, n in enumerate(states.num_thinking[-1])], states


def test_the_trace_of_a_smaller_budget_is_a_prefix_of_that_of_a_larger():
    large = [s._replace(maximum=20) for s in random_settings(500)]
    small = [s._replace(maximum=s.max_answer * 2) for s in large]
    scripts = random_scripts(500)
    larger, smaller = traces(large, scripts)[0], traces(small, scripts)[0]
    assert any(0 < len(a) < len(b) for a, b in zip(smaller, larger, strict=True))
    for s, a, b in zip(small, smaller, larger, strict=True):
        assert a == b[: s.maximum]


def test_the_trace_of_k_ignores_is_that_of_one_more_up_to_its_next_attempt():
    fewer = [s._replace(maximum=20, minimum=0) for s in random_settings(500)]
    scripts = random_scripts(500)
    more = [s._replace(num_ignore=s.num_ignore + 1) for s in fewer]
    (short, _), (long, states) = traces(fewer, scripts), traces(more, scripts)
    reached = 0
    for i, s in enumerate(fewer):
        attempts = np.flatnonzero(states.num_ignored[:, i] == s.num_ignore + 1)
        reached += len(attempts) > 0
        assert short[i] == (long[i][: attempts[0]] if len(attempts) else long[i])
    assert reached > 100


def test_settings_mixed_in_a_batch_give_what_each_gives_alone():
    settings, scripts = random_settings(24), random_scripts(24)
    together = run(LONG, settings, scripts)
    for i in range(24):
        alone = run(LONG, [settings[i]], scripts[i : i + 1])
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:, i : i + 1], y), together, alone)  # noqa: B023


def test_other_settings_compile_nothing_again():
    advance = jax.jit(functools.partial(budget.transition, vocabulary_of(LONG)))
    settings, last = row_settings(LONG.final_answer, random_settings(4)), jnp.zeros(4, jnp.int32)
    state = budget.init_state(vocabulary_of(LONG), settings, last, budget.Phase.THINK, 0)
    for seed in range(3):
        advance(
            row_settings(LONG.final_answer, random_settings(4, seed)),
            state,
            np.zeros(4, np.int32),
            np.zeros(4, np.int32),
        )
    assert advance._cache_size() == 1


def test_every_limit_ends_a_larger_trace_where_it_ends_its_own():
    scripts = random_scripts(12)
    checked = 0
    for ignore in ((WAIT_1,), (WAIT_1, WAIT_2), ()):
        largest = [Settings(12, 6, 3, ignore, 2, PLAIN) for _ in scripts]
        _, _, states = run(LONG, largest, scripts)
        thinking = np.concatenate([np.zeros_like(states.num_thinking[:1]), states.num_thinking[:-1]])
        ignored = np.diff(states.num_ignored, axis=0, prepend=0) > 0
        for maximum, minimum, num_ignore in itertools.product((0, 1, 3, 7, 12), (0, 2, 6), range(4)):
            if minimum > maximum:
                continue
            _, _, own = run(LONG, [Settings(maximum, minimum, num_ignore, ignore, 2, PLAIN)] * len(scripts), scripts)
            for row in range(len(scripts)):
                attempts = thinking[ignored[:, row], row].tolist()
                if states.num_thinking[-1, row] < 12:
                    attempts.append(int(states.num_thinking[-1, row]))
                limits = budget.Limits(maximum, minimum, num_ignore)
                end = budget.find_end(limits, [budget.Attempt(place, True) for place in attempts])
                num_thinking = own.num_thinking[-1, row]
                assert end == (num_thinking, own.num_ignored[-1, row], num_thinking < maximum)
                checked += end.is_natural
    assert checked > 50
