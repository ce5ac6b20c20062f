"""A model that is ready to decode: its parameters on a mesh, and the token ids that decoding must know."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from s1jax.data.chat import Delimiters
from s1jax.decode.budget import Vocabulary
from s1jax.decode.request import Request
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model on a mesh, and the properties of its tokenizer that decoding needs."""

    config: ModelConfig
    params: Params
    """In the per-layer layout."""
    rules: ShardingRules
    mesh: jax.sharding.Mesh
    vocabulary: Vocabulary
    allowed: Bool[Array, " V"]
    """Ids that exist in the tokenizer. No other id is drawn."""
    longest_delimiter: int
    """Largest number of tokens that are forced between thinking and answer."""
    attention: CacheBackend | None = None
    """Backend of attention over caches; default: the platform's."""
    to_text: Callable[[Sequence[int]], str] | None = None
    """Text of ids without special tokens, for stop strings. The text of more ids must begin with the text of fewer, except for the
    replacement characters of an incomplete character."""

    @property
    def static(self) -> dict[str, Any]:
        """The static arguments that every compiled function takes."""
        return dict(config=self.config, rules=self.rules)

    def fetch(self, tree: Any) -> Any:
        """Bring arrays to the host. If there are several processes, each gets all of them."""
        return jax.device_get(_replicate(self.mesh)(tree) if jax.process_count() > 1 else tree)

    def num_new_tokens(self, request: Request) -> int:
        """Return the largest number of tokens that this request can emit."""
        return request.condition.max_thinking_tokens + self.longest_delimiter + request.condition.max_answer_tokens + 1

    def check(self, request: Request) -> None:
        """Raise UserError unless the request's prompt and limits fit the model's context, and its stop strings can be found."""
        total = len(request.prompt) + self.num_new_tokens(request)
        thinking, answer = request.condition.max_thinking_tokens, request.condition.max_answer_tokens
        if (over := total - self.config.context_length) > 0:
            lower = f"lower max_thinking_tokens or max_answer_tokens, by {over} together, or "
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens, {thinking} of thinking, {answer} of answer and "
                f"{self.longest_delimiter + 1} between and after them need {total} positions; the model has "
                f"{self.config.context_length}, its context length: {lower if over < thinking + answer else ''}shorten the prompt"
            )
        if request.stop and self.to_text is None:
            raise UserError(
                "the request has stop strings, but the engine has no tokenizer to read text with: give it `to_text`"
            )


@functools.cache
def _replicate(mesh: jax.sharding.Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def place_model(
    config: ModelConfig,
    params: Params,
    rules: ShardingRules,
    mesh: jax.sharding.Mesh,
    delimiters: Delimiters,
    ends_in_newline: Bool[np.ndarray, " num_tokens"],
    attention: CacheBackend | None = None,
    to_text: Callable[[Sequence[int]], str] | None = None,
) -> LoadedModel:
    """Return the model with its vocabulary; `ends_in_newline` says for each of the tokenizer's ids whether its text does."""
    vocabulary, allowed = make_vocabulary(delimiters, ends_in_newline, config.vocab_size)
    longest = len(delimiters.newline) + max(len(delimiters.final_answer), len(delimiters.answer))
    return LoadedModel(config, params, rules, mesh, vocabulary, allowed, longest, attention, to_text)


def make_vocabulary(
    delimiters: Delimiters, ends_in_newline: Bool[np.ndarray, " num_tokens"], vocab_size: int
) -> tuple[Vocabulary, Bool[Array, " V"]]:
    """Return the ids that budget forcing must know, and the mask [V] of ids that exist in the tokenizer.

    `vocab_size` is the model's. It may exceed the tokenizer's size, `len(ends_in_newline)`; the ids between have no text. Raises
    UserError if it is below.
    """
    num_tokens = len(ends_in_newline)
    if num_tokens > vocab_size:
        raise UserError(f"the tokenizer has {num_tokens} ids, the model only {vocab_size}: they don't belong together")

    def one_hot(ids: Sequence[int]) -> jax.Array:
        return jnp.zeros(vocab_size, bool).at[jnp.array(ids)].set(True)

    vocabulary = Vocabulary(
        ends_thinking=one_hot(delimiters.end_thinking),
        ends_answer=one_hot(delimiters.end_answer),
        ends_in_newline=jnp.pad(jnp.array(ends_in_newline), (0, vocab_size - num_tokens)),
        answer=jnp.array(delimiters.answer, jnp.int32),
        newline=jnp.array(delimiters.newline, jnp.int32),
        final_answer=jnp.array(delimiters.final_answer, jnp.int32),
        pad=jnp.array(delimiters.pad, jnp.int32),
    )
    return vocabulary, jnp.arange(vocab_size) < num_tokens
