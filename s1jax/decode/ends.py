"""Ends of thinking: texts -> tables that find them in a stream of tokens (Aho-Corasick, with whole tokens as steps).

An end is found in the text, because a tokenizer may split a tag such as `</think>` in several ways. A text is a sequence of symbols. An
added token is one symbol, and any other token is its characters. So the characters of a tag never match an added token of that name.
A character whose bytes lie in several tokens is not found.

A match in progress is the longest end of the text so far with which some end begins. The first end that is complete wins; if several are
complete at once, the longest. A token belongs to a match as a whole, even if the match begins or ends inside it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

Symbol = str | int
"""A character, or the id of an added token."""


class Ends(NamedTuple):
    """The ends of thinking under one tokenizer. In state 0 no match is in progress; each other state is the beginning of an end."""

    next_state: Int[Array, "S V"]
    """State after a token. S: an end is complete. S + 1: an end is complete after which the forced delimiter is written."""
    symbols_before: Int[Array, "S V"]
    """Symbols of the match, complete or in progress after the token, that lie before the token."""
    num_symbols: Int[Array, " V"]
    """Symbols of each token, at least 1."""
    completing: Int[Array, "S E"]
    """The ids that complete an end in each state, padded with -1."""

    @property
    def num_states(self) -> int:
        """S. A match in progress has fewer tokens than this."""
        return self.next_state.shape[0]


def follow(
    ends: Ends, state: Int[Array, " B"], recent: Int[Array, "B S"], token: Int[Array, " B"]
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """Return the state of each row after a token, and how many of its recent tokens belong to the match before this token.

    `recent` are the row's last S tokens, the newest last.
    """
    symbols = ends.symbols_before[state, token]
    lengths = ends.num_symbols[recent[:, :0:-1]]  # newest first
    starts = jnp.cumsum(lengths, axis=1) - lengths
    return ends.next_state[state, token].astype(jnp.int32), jnp.sum(starts < symbols[:, None], axis=1, dtype=jnp.int32)


def find_ends(
    texts: Sequence[str],
    forced: Sequence[str],
    token_texts: Sequence[str],
    added_tokens: Mapping[str, int],
    vocab_size: int,
) -> Ends:
    """Return the tables for some ends; `forced` are those after which the forced delimiter is written.

    `token_texts` are the texts of the tokenizer's ids. `vocab_size` is the model's and may be larger.
    """
    added = set(added_tokens.values())
    symbols: list[Sequence[Symbol]] = [(i,) if i in added or not text else text for i, text in enumerate(token_texts)]
    by_first: dict[Symbol, list[int]] = defaultdict(list)
    for i, of_token in enumerate(symbols):
        by_first[of_token[0]].append(i)
    trie = _Trie([(_symbols_of(text, added_tokens), text in forced) for text in texts])

    number = {node: i for i, node in enumerate(trie.live)}
    tables = np.zeros((2, len(number), vocab_size), np.int16)
    for node, state in number.items():
        if node == 0:
            firsts = set(trie.children[0])
            tokens = [i for i, of_token in enumerate(symbols) if not firsts.isdisjoint(of_token)]
        else:
            # A token that does not continue this match does what it does in the longest shorter match.
            tables[:, state] = tables[:, number[trie.fail[node]]]
            tokens = [i for symbol in trie.children[node] for i in by_first[symbol]]
        for i in tokens:
            after, num_read = trie.walk(node, symbols[i])
            if (end := trie.complete[after]) is None:
                tables[:, state, i] = number[after], max(0, trie.depth[after] - num_read)
            else:
                length, is_forced = end
                tables[:, state, i] = len(number) + is_forced, max(0, length - num_read)
    num_symbols = np.ones(vocab_size, np.int32)
    num_symbols[: len(symbols)] = [len(of_token) for of_token in symbols]
    by_state = [np.flatnonzero(states >= len(number)) for states in tables[0]]
    completing = np.full((len(number), max(1, *map(len, by_state))), -1, np.int32)
    for state, ids in enumerate(by_state):
        completing[state, : len(ids)] = ids
    return Ends(jnp.array(tables[0]), jnp.array(tables[1]), jnp.array(num_symbols), jnp.array(completing))


class _Trie:
    """The beginnings of all ends as nodes, the empty one as node 0, with what Aho and Corasick add to them."""

    def __init__(self, ends: Sequence[tuple[Sequence[Symbol], bool]]):
        self.children: list[dict[Symbol, int]] = [{}]
        self.depth = [0]
        self.complete: list[tuple[int, bool] | None] = [None]
        """Number of symbols of the longest end that is complete at a node, and whether it is a forced one."""
        for symbols, is_forced in ends:
            node = 0
            for symbol in symbols:
                if symbol not in self.children[node]:
                    self.children[node][symbol] = len(self.depth)
                    self.children.append({})
                    self.depth.append(self.depth[node] + 1)
                    self.complete.append(None)
                node = self.children[node][symbol]
            self.complete[node] = len(symbols), is_forced
        self.fail = [0] * len(self.depth)
        """The longest node that a node ends with, except the node itself."""
        self.moves: dict[int, dict[Symbol, int]] = {}
        """The node after each symbol, from the nodes at which no end is complete; node 0 after any other symbol."""
        reached = [0]
        for node in reached:  # by depth: the loop itself adds the children
            fail = self.fail[node]
            self.complete[node] = self.complete[node] or self.complete[fail]
            if self.complete[node]:
                continue
            self.moves[node] = {**self.moves.get(fail, {}), **self.children[node]}
            for symbol, child in self.children[node].items():
                self.fail[child] = self.moves[fail].get(symbol, 0) if node else 0
                reached.append(child)

    @property
    def live(self) -> list[int]:
        """The nodes that a match in progress may be at, by depth."""
        return list(self.moves)

    def walk(self, node: int, symbols: Sequence[Symbol]) -> tuple[int, int]:
        """Return the node after some symbols, and how many of them were read: not those after the first complete end."""
        for num_read, symbol in enumerate(symbols, start=1):
            node = self.moves[node].get(symbol, 0)
            if self.complete[node]:
                return node, num_read
        return node, len(symbols)


def _symbols_of(text: str, added_tokens: Mapping[str, int]) -> list[Symbol]:
    spelled = "|".join(map(re.escape, sorted(added_tokens, key=len, reverse=True)))
    pieces = re.split(f"({spelled})", text) if spelled else [text]
    return [symbol for piece in pieces for symbol in ([added_tokens[piece]] if piece in added_tokens else piece)]
