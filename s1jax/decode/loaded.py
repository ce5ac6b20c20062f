"""A model that is ready to decode: its parameters on a mesh, and the token ids that decoding must know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from s1jax.data.chat import Delimiters
from s1jax.decode.budget import Vocabulary
from s1jax.decode.ends import find_ends
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
    attention: CacheBackend | None = None
    """Backend of attention over caches; default: the platform's."""
    to_text: Callable[[Sequence[int]], str] | None = None
    """Text of ids without special tokens, for stop strings. The text of more ids must begin with the text of fewer, except for the
    replacement characters of an incomplete character."""

    @property
    def static(self) -> dict[str, Any]:
        """The static arguments that every compiled function takes."""
        return dict(config=self.config, rules=self.rules)

    def num_after_thinking(self, request: Request) -> int:
        """Return the largest number of tokens of the delimiter and the answer, with the id that ends it."""
        ids = self.vocabulary
        longest_delimiter = len(ids.newline) + max(len(request.final_ids), len(ids.answer))
        return longest_delimiter + request.condition.max_answer_tokens + 1

    def num_new_tokens(self, request: Request) -> int:
        """Return the largest number of tokens that this request can hold at once, with those past the budget that it takes back."""
        longest_match = self.vocabulary.ends.num_states - 1
        return request.condition.max_thinking_tokens + max(longest_match, self.num_after_thinking(request))

    def check(self, request: Request) -> None:
        """Raise UserError unless the request's prompt and limits fit the model's context, and its stop strings can be found."""
        context, total = self.config.context_length, len(request.prompt) + self.num_new_tokens(request)
        if total > context:
            raise UserError(
                f"a prompt of {len(request.prompt)} tokens, its thinking and its answer need {total} positions; the model has {context}, "
                f"its context length: lower max_thinking_tokens or max_answer_tokens, by {total - context} together, or shorten the prompt"
            )
        if request.stop and self.to_text is None:
            raise UserError("stop strings need `to_text`: the engine has no tokenizer to read text with")


def fetch(tree: Any) -> Any:
    """Bring arrays to the host. If there are several processes, each gets all of them."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree)


def make_vocabulary(
    delimiters: Delimiters, token_texts: Sequence[str], added_tokens: Mapping[str, int], vocab_size: int
) -> Vocabulary:
    """Return the ids that decoding must know.

    `token_texts` are the texts of the tokenizer's ids, `added_tokens` the ids of its added tokens by their texts. `vocab_size` is the
    model's. It may exceed the number of these ids; the ids between have no text. It is not below (`load_tokenizer`).
    """
    ids = np.arange(vocab_size)
    newline_ids = [i for i, text in enumerate(token_texts) if text.endswith("\n")]
    return Vocabulary(
        exists=jnp.array(ids < len(token_texts)),
        ends=find_ends(delimiters.end_thinking, delimiters.forced_ends, token_texts, added_tokens, vocab_size),
        ends_answer=jnp.array(np.isin(ids, delimiters.end_answer)),
        ends_in_newline=jnp.array(np.isin(ids, newline_ids)),
        answer=jnp.array(delimiters.answer, jnp.int32),
        newline=jnp.array(delimiters.newline, jnp.int32),
        pad=jnp.array(delimiters.pad, jnp.int32),
    )
