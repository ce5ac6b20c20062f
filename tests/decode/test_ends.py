"""`ends.py`: the tables find in tokens what a search finds in their text."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.data.chat import ChatFormat
from s1jax.decode.ends import Ends, find_ends, follow


def search(ends, tokens):
    """The end in progress or complete after the last token, by brute force: (its text, tokens of it before the last one)."""
    text = "".join(tokens)
    before = len(text) - len(tokens[-1])
    for stop in range(before + 1, len(text) + 1):
        for begin in range(stop):
            if text[begin:stop] in ends:
                return text[begin:stop], tokens_from(tokens, begin)
    for begin in range(len(text)):
        if any(end.startswith(text[begin:]) for end in ends):
            return None, tokens_from(tokens, begin)
    return None, 0


def tokens_from(tokens, begin):
    """Number of tokens before the last one that hold a character at or after `begin`."""
    stops = np.cumsum([len(token) for token in tokens])
    return int(np.sum(stops[:-1] > begin))


def begins_at_last(ends, tokens):
    """Whether a match, complete or not, is in progress after the last token."""
    text = "".join(tokens)
    return any(end.startswith(text[begin:]) for end in ends for begin in range(len(text)))


def walk(tables: Ends, ids):
    """Follow some tokens; yield (state, tokens of the match before this token) after each. After a complete end the match is empty."""
    state, recent = 0, [0] * tables.num_states
    for i in ids:
        after, before = follow(tables, jnp.array([state]), jnp.array([recent]), jnp.array([i]))
        yield int(after[0]), int(before[0])
        state, recent = int(after[0]), [*recent[1:], i]


@pytest.mark.parametrize("seed", range(12))
def test_tables_find_what_a_search_in_the_text_finds(seed):
    rng = random.Random(seed)

    texts = sorted({"".join(rng.choices("ab" if seed % 2 else "abc", k=rng.randint(1, 3))) for _ in range(6)})
    ends = sorted({"".join(rng.choices(texts, k=3))[1 : rng.randint(2, 6)] for _ in range(rng.randint(1, 3))})
    forced = [end for end in ends if rng.random() < 0.5]
    tables = find_ends(ends, forced, texts, {}, len(texts) + 2)
    found = 0
    for _ in range(60):
        ids = [rng.randrange(len(texts)) for _ in range(8)]
        for length, (state, before) in enumerate(walk(tables, ids), start=1):
            tokens = [texts[i] for i in ids[:length]]
            end, wanted = search(ends, tokens)
            assert before == wanted, (ends, tokens)
            if end is not None:
                assert state == tables.num_states + (end in forced), (ends, tokens)
                found += 1
                break
            assert state < tables.num_states and (state > 0) == begins_at_last(ends, tokens), (ends, tokens)
    assert found
    for states, ids in zip(np.asarray(tables.next_state), np.asarray(tables.completing), strict=True):
        assert ids[ids >= 0].tolist() == np.flatnonzero(states >= tables.num_states).tolist()


def test_an_added_token_is_one_symbol_and_its_characters_are_none():
    texts = ["<E>", "<", "E", ">", "<E>0", "0", ""]
    tables = find_ends(["<E>0", "<E>"[:2]], ["<E>0"], texts, {"<E>": 0}, 8)
    assert [state for state, _ in walk(tables, [0, 5])] == [1, tables.num_states + 1]
    assert [state for state, _ in walk(tables, [1, 2])][-1] == tables.num_states
    only_added = find_ends(["<E>0"], [], texts, {"<E>": 0}, 8)
    assert not any(state for state, _ in walk(only_added, [1, 2, 3, 5, 4, 5]))
    assert [state for state, _ in walk(only_added, [0, 6, 5])] == [1, 0, 0], "a token without text is a symbol, too"


@pytest.mark.parametrize("end", ["</think>", "<|end_of_thought|>"])
def test_a_tag_is_found_however_its_text_is_split_into_the_tokens_of_qwen(qwen_tokenizer, end):
    chat = ChatFormat.of(qwen_tokenizer)
    tables = find_ends([end, "<|im_end|>"], [], chat.token_texts, chat.added_tokens, len(chat.token_texts))
    ids = {text: i for i, text in enumerate(chat.token_texts)}
    rng = random.Random(0)
    splits = set()
    while len(splits) < 20:
        tokens, rest = [], end
        while rest:
            tokens.append(rng.choice([rest[:n] for n in range(1, len(rest) + 1) if rest[:n] in ids]))
            rest = rest.removeprefix(tokens[-1])
        splits.add(tuple(tokens))
    splits.add(tuple(chat.token_texts[i] for i in chat.encode_text(end)))
    for split in splits:
        steps = list(walk(tables, [ids[" a"], *(ids[text] for text in split)]))
        assert steps[0] == (0, 0)
        assert all(0 < state < tables.num_states for state, _ in steps[1:-1])
        assert steps[-1] == (tables.num_states, len(split) - 1)


def test_the_ends_of_s1_are_single_tokens(qwen_tokenizer):
    chat = ChatFormat.of(qwen_tokenizer)
    size = len(chat.token_texts) + 7
    tables = find_ends(chat.delimiters.end_thinking, (), chat.token_texts, chat.added_tokens, size)
    assert tables.num_states == 1 and not tables.symbols_before.any()
    assert np.flatnonzero(tables.next_state[0]).tolist() == [151643, 151644, 151645]
