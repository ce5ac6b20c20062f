"""Budget-forced decoding: requests -> completions, by one prefill and one compiled `lax.while_loop`.

Every step of the loop turns the last hidden states into logits, draws a token per row (`sampling.py`), asks `budget.transition` which token
to emit, and runs the model on it. Budgets, ignore strings and sampling settings are [B] arrays of the carry, so none of them recompiles
anything, and nothing goes to the host per token. Shapes are bucketed (`PROMPT_BUCKET`, `NEW_TOKENS_BUCKET`) to bound the compilations.

Invariant: a row's tokens depend on its own prompt, settings and (seed, problem, sample) only, never on its batch-mates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s1jax import budget, sampling
from s1jax.budget import Phase, RowSettings, RowState, Vocabulary
from s1jax.chat import Delimiters, find_delimiters, newline_ids
from s1jax.model import KVCache, ModelConfig, Params, graphdef, init_cache
from s1jax.sampling import SamplingSettings
from s1jax.sharding import MeshConfig, ShardingRules, make_mesh

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, Key

PROMPT_BUCKET = 64
NEW_TOKENS_BUCKET = 128
IGNORE_BUCKET = 8


@dataclass(frozen=True)
class Request:
    """One row to decode. Counts are in tokens."""

    prompt: tuple[int, ...]
    """Ids up to and including the think delimiter (or, with `thinks` False, the chat prompt)."""
    max_thinking_tokens: int = 0
    min_thinking_tokens: int = 0
    num_ignore: int = 0
    """How often an attempt to end thinking is replaced by `ignore_ids`."""
    ignore_ids: tuple[int, ...] = ()
    """The ignore string; when empty, another token is drawn instead."""
    max_answer_tokens: int = 512
    thinks: bool = True
    """Whether the row thinks first; False answers at once, without an answer delimiter."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    problem: int = 0
    sample: int = 0
    """With `seed` and `problem`, what the row's randomness is drawn from."""

    def __post_init__(self):
        for name in ("max_thinking_tokens", "min_thinking_tokens", "num_ignore", "top_k", "temperature", "min_p"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.min_thinking_tokens > self.max_thinking_tokens:
            raise ValueError(
                f"min_thinking_tokens {self.min_thinking_tokens} is above max_thinking_tokens {self.max_thinking_tokens}"
            )
        if self.max_answer_tokens < 1:
            raise ValueError(f"max_answer_tokens is {self.max_answer_tokens}; it must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not self.prompt:
            raise ValueError("the prompt is empty")


@dataclass(frozen=True)
class Completion:
    """What a row emitted."""

    tokens: tuple[int, ...]
    """Thinking, answer delimiter and answer, with the id that ended it."""
    forced: tuple[bool, ...]
    """Which of them were not sampled."""
    num_thinking: int
    num_ignored: int
    num_forced: int
    num_answer: int
    stopped: bool
    """Whether the model ended the answer; False: `max_answer_tokens` did."""


class DecodeState(NamedTuple):
    """The carry of the loop."""

    cache: KVCache
    hidden: Float[Array, "B D"]
    """Final hidden state of each row's last token."""
    next_position: Int[Array, " B"]
    row: RowState
    tokens: Int[Array, "B C"]
    forced: Bool[Array, "B C"]
    num_steps: Int[Array, ""]


class RowInputs(NamedTuple):
    """What stays the same during a decode."""

    settings: RowSettings
    sampling: SamplingSettings
    keys: Key[Array, " B"]
    allowed: Bool[Array, " V"]
    vocabulary: Vocabulary


def make_vocabulary(
    delimiters: Delimiters, ends_in_newline: Bool[np.ndarray, " num_tokens"], vocab_size: int
) -> tuple[Vocabulary, Bool[Array, " V"]]:
    """Return what budget forcing knows of a tokenizer, and the mask of ids that exist in it.

    `vocab_size` is the model's, at least the tokenizer's `len(ends_in_newline)`; the ids in between have no text and are never drawn.
    """
    num_tokens = len(ends_in_newline)
    if num_tokens > vocab_size:
        raise ValueError(f"the tokenizer has {num_tokens} ids, the model only {vocab_size}: they don't belong together")

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


@functools.partial(jax.jit, static_argnames=("config", "rules", "num_new_tokens"))
def prefill(
    params: Params,
    inputs: RowInputs,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    phase: Int[Array, " B"],
    *,
    config: ModelConfig,
    rules: ShardingRules,
    num_new_tokens: int,
) -> DecodeState:
    """Run the model on right-padded prompts; return the carry of rows that start in `phase` and may emit `num_new_tokens` tokens."""
    B, T = prompts.shape
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    hidden, cache = model(prompts, positions, segment_ids, init_cache(config, B, T + num_new_tokens, rules))
    last = (lengths - 1)[:, None]
    row = budget.init_state(inputs.vocabulary, inputs.settings, jnp.take_along_axis(prompts, last, axis=1)[:, 0])
    return DecodeState(
        cache=cache,
        hidden=jnp.take_along_axis(hidden, last[:, :, None], axis=1)[:, 0],
        next_position=lengths,
        row=row._replace(phase=phase),
        tokens=jnp.zeros((B, num_new_tokens), jnp.int32),
        forced=jnp.zeros((B, num_new_tokens), bool),
        num_steps=jnp.zeros((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("config", "rules"), donate_argnames="state")
def advance(
    params: Params,
    inputs: RowInputs,
    state: DecodeState,
    until: Int[Array, ""],
    *,
    config: ModelConfig,
    rules: ShardingRules,
) -> DecodeState:
    """Decode until every row is done or `until` steps have been made in all; the state is donated."""
    model = nnx.merge(graphdef(config, rules, "per_layer"), params)
    vocabulary = inputs.vocabulary

    def unfinished(state: DecodeState) -> jax.Array:
        return jnp.any(state.row.phase != Phase.DONE) & (state.num_steps < until)

    def step(state: DecodeState) -> DecodeState:
        logits = model.logits(state.hidden[:, None])[:, 0]
        keys = jax.vmap(jax.random.fold_in, (0, None))(inputs.keys, state.num_steps)
        token = sampling.draw(logits, inputs.allowed[None], keys, inputs.sampling)
        ends = vocabulary.ends_thinking[token] & (state.row.phase == Phase.THINK)
        redraw = jax.lax.cond(
            jnp.any(ends),
            lambda: sampling.draw(logits, (inputs.allowed & ~vocabulary.ends_thinking)[None], keys, inputs.sampling),
            lambda: token,
        )
        emitted, forced, row = budget.transition(
            vocabulary, inputs.settings, state.row, token, jnp.where(ends, redraw, token)
        )
        live = (state.row.phase != Phase.DONE).astype(jnp.int32)
        hidden, cache = model(emitted[:, None], state.next_position[:, None], live[:, None], state.cache)
        return DecodeState(
            cache=cache,
            hidden=hidden[:, 0],
            next_position=state.next_position + live,
            row=row,
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, emitted[:, None], state.num_steps, axis=1),
            forced=jax.lax.dynamic_update_slice_in_dim(state.forced, forced[:, None], state.num_steps, axis=1),
            num_steps=state.num_steps + 1,
        )

    return jax.lax.while_loop(unfinished, step, state)


class Decoder:
    """A model ready to decode requests; parameters in the per-layer layout. It runs on `mesh`."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        rules: ShardingRules,
        mesh: jax.sharding.Mesh,
        delimiters: Delimiters,
        ends_in_newline: Bool[np.ndarray, " num_tokens"],
    ):
        self.config, self.params, self.rules, self.mesh = config, params, rules, mesh
        self.vocabulary, self.allowed = make_vocabulary(delimiters, ends_in_newline, config.vocab_size)
        self.longest_delimiter = len(delimiters.newline) + max(len(delimiters.final_answer), len(delimiters.answer))

    def check(self, request: Request) -> None:
        """Raise ValueError unless the request's prompt and limits fit the model's context."""
        total = len(request.prompt) + self.num_new_tokens(request)
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens, {request.max_thinking_tokens} of thinking and "
                f"{request.max_answer_tokens} of answer need {total} positions; the model has "
                f"{self.config.max_position_embeddings}: shorten the prompt or lower the limits"
            )

    def num_new_tokens(self, request: Request) -> int:
        """Return the most tokens this request can emit."""
        return request.max_thinking_tokens + self.longest_delimiter + request.max_answer_tokens + 1

    def decode(
        self,
        requests: Sequence[Request],
        batch_size: int | None = None,
        steps_per_call: int | None = None,
        on_progress: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Decode the requests as one batch and return their completions in order.

        The batch is padded to `batch_size` rows, so that batches of different size share a compilation. With `steps_per_call` the loop
        returns to the host every so many steps and `on_progress` is given the completions so far.
        """
        if not requests:
            return []
        for request in requests:
            self.check(request)
        with jax.set_mesh(self.mesh):
            inputs, state = self._start(requests, max(batch_size or 0, len(requests)))
            limit = state.tokens.shape[1]
            for until in range(0, limit, steps_per_call or limit):
                stop = jnp.array(min(until + (steps_per_call or limit), limit), jnp.int32)
                state = advance(self.params, inputs, state, stop, config=self.config, rules=self.rules)
                if on_progress is not None:
                    on_progress(_completions(state, requests))
                if bool(jnp.all(state.row.phase == Phase.DONE)):
                    break
        return _completions(state, requests)

    def _start(self, requests: Sequence[Request], batch_size: int) -> tuple[RowInputs, DecodeState]:
        """Prefill the requests; rows past the last request are done from the start."""
        B = batch_size
        rows = [*requests, *[requests[-1]] * (B - len(requests))]
        T = _round_up(max(len(row.prompt) for row in rows), PROMPT_BUCKET)
        C = _round_up(max(self.num_new_tokens(row) for row in rows), NEW_TOKENS_BUCKET)
        W = _round_up(max(1, *(len(row.ignore_ids) for row in rows)), IGNORE_BUCKET)

        def ints(name: str) -> jax.Array:
            return jnp.array([getattr(row, name) for row in rows], jnp.int32)

        def floats(name: str) -> jax.Array:
            return jnp.array([getattr(row, name) for row in rows], jnp.float32)

        prompts, ignore_ids = np.zeros((B, T), np.int32), np.zeros((B, W), np.int32)
        for i, row in enumerate(rows):
            prompts[i, : len(row.prompt)] = row.prompt
            ignore_ids[i, : len(row.ignore_ids)] = row.ignore_ids
        lengths = jnp.array([len(row.prompt) for row in rows], jnp.int32)
        settings = RowSettings(
            max_thinking_tokens=ints("max_thinking_tokens"),
            min_thinking_tokens=ints("min_thinking_tokens"),
            num_ignore=ints("num_ignore"),
            ignore_ids=jnp.array(ignore_ids),
            ignore_length=jnp.array([len(row.ignore_ids) for row in rows], jnp.int32),
            max_answer_tokens=ints("max_answer_tokens"),
        )
        inputs = RowInputs(
            settings=settings,
            sampling=SamplingSettings(floats("temperature"), ints("top_k"), floats("top_p"), floats("min_p")),
            keys=sampling.row_keys(ints("seed"), ints("problem"), ints("sample")),
            allowed=self.allowed,
            vocabulary=self.vocabulary,
        )
        thinks = np.array([row.thinks for row in rows])
        is_request = np.arange(B) < len(requests)
        phase = np.where(is_request, np.where(thinks, Phase.THINK, Phase.ANSWER), Phase.DONE).astype(np.int32)
        state = prefill(
            self.params, inputs, prompts, lengths, phase, config=self.config, rules=self.rules, num_new_tokens=C
        )
        return inputs, state


def load_decoder(
    model: str, dtype: str = "bfloat16", mesh: MeshConfig | None = None, rules: ShardingRules | None = None
) -> tuple[Decoder, Any]:
    """Return a model (Hugging Face directory or hub id, or our own checkpoint) ready to decode on its mesh, and its tokenizer.

    Raises ValueError for a tokenizer that lacks the delimiters, or that does not belong to the model.
    """
    # Here, so that decoding itself needs no more than jax, flax and numpy.
    from s1jax.checkpoint import load_model, load_tokenizer

    rules = rules or ShardingRules()
    tokenizer = load_tokenizer(model)
    delimiters = find_delimiters(tokenizer)
    device_mesh = make_mesh(mesh or MeshConfig())
    config, params = load_model(model, device_mesh, rules, "per_layer", dtype=dtype, param_dtype=dtype)
    return Decoder(config, params, rules, device_mesh, delimiters, newline_ids(tokenizer)), tokenizer


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _completions(state: DecodeState, requests: Sequence[Request]) -> list[Completion]:
    """Bring the emitted tokens to the host."""
    tokens, forced, next_position, row = jax.device_get((state.tokens, state.forced, state.next_position, state.row))
    completions = []
    for i, request in enumerate(requests):
        count = int(next_position[i]) - len(request.prompt)
        completions.append(
            Completion(
                tokens=tuple(tokens[i, :count].tolist()),
                forced=tuple(forced[i, :count].tolist()),
                num_thinking=int(row.num_thinking[i]),
                num_ignored=int(row.num_ignored[i]),
                num_forced=int(row.num_forced[i]),
                num_answer=int(row.num_answer[i]),
                stopped=bool(row.stopped[i]),
            )
        )
    return completions
