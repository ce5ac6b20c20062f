"""A model type of lm-evaluation-harness: requests of its tasks -> answers and log-likelihoods, which it scores.

- With `max_thinking_tokens` the model thinks before each answer, and lm-eval gets the answer alone. Thinking needs the chat prompt. So a
  text without it is asked as one user's turn, as `evaluate` asks a question; a text that lm-eval wrote with --apply_chat_template is used
  as it is.
- With `max_thinking_tokens=0,thinking_format=none` the model answers the chat prompt at once.
- Without `max_thinking_tokens` the model continues the text, as lm-eval's model type `hf` does.
- Log-likelihoods are those of the text as it is, without thinking. They equal those of `hf`.
- As in `hf`, text that spells a special token becomes one, except in a text that is asked as a user's turn.

Invariant: the randomness of an answer is a function of (seed, text, number of the repeat) and positions, so no other request changes it.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.condition import Condition, check_integer
from s1jax.decode.engine import load_engine
from s1jax.decode.request import Completion, Request
from s1jax.ops.attention import CacheBackend
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, OutputPath, check_types, with_paths
from s1jax.runtime.files import check_writable, short_path
from s1jax.runtime.git import commit
from s1jax.runtime.lock import Lock
from s1jax.runtime.progress import progress

logger = logging.getLogger(__name__)

# Names of lm-eval for the longest answer; the first one that is given counts.
_ANSWER_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Settings without effect on a model that continues a text and does not think.
_ONLY_THINKING = {
    "min_thinking_tokens",
    "num_ignore",
    "ignore_text",
    "wrap_up",
    "thinking_format",
    "prompt_suffix",
    "system_prompt",
}
_FILTERS = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


@dataclass(frozen=True)
class ModelArguments:
    """The model arguments that are no fields of a condition."""

    model: InputPath
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    output: OutputPath | None = None
    """A new JSONL file for the answers with their whole thoughts."""
    seed: int = 0
    """Seed of the random draws at a temperature above 0."""
    num_rows: int = 64
    """Largest number of sequences that are decoded together."""
    attention: CacheBackend | None = None
    """Backend of attention over caches."""

    def __post_init__(self) -> None:
        check_types(self)
        check_integer("seed", self.seed)
        check_integer("num_rows", self.num_rows, least=1)


@register_model("s1jax")
class S1jaxLM(TemplateLM):
    """A model under one condition. A task's own generation settings replace those of the condition."""

    def __init__(self, **arguments: Any) -> None:
        """Load a model. The arguments are the fields of `ModelArguments` and of `Condition`; `int8` may be one text (weights+cache).

        Raises UserError for an argument that is unknown, missing or makes no sense, and as `load_engine` does.
        """
        super().__init__()
        own = {field.name: arguments.pop(field.name) for field in fields(ModelArguments) if field.name in arguments}
        if unknown := arguments.keys() - {field.name for field in fields(Condition)}:
            raise UserError(f"s1jax has no model argument {', '.join(sorted(unknown))}: see docs/usage.md")
        if "model" not in own:
            raise UserError("the model argument model is missing: give --model_args model=DIR")
        self.arguments = with_paths(ModelArguments(**own))
        self.is_asked = "max_thinking_tokens" in arguments
        """Whether the model is asked by the chat prompt. If not, it continues the text."""
        if not self.is_asked and (given := arguments.keys() & _ONLY_THINKING):
            raise UserError(
                f"{', '.join(sorted(given))} needs max_thinking_tokens: without it the model does not think"
            )
        if isinstance(arguments.get("int8"), str):
            arguments["int8"] = tuple(arguments["int8"].split("+"))
        self.condition = Condition(**{"max_thinking_tokens": 0} | arguments)
        if self.condition.method != "budget_forcing":
            raise UserError(f"method is {self.condition.method}: tasks of lm-eval run with budget_forcing alone")
        self.output = Path(self.arguments.output) if self.arguments.output else None
        if self.output:
            check_writable(self.output)
            if self.output.exists():
                raise UserError(f"{self.output} exists: give another output, or remove it")
        source, condition = resolve_source(self.arguments.model), self.condition
        settings = condition.thinking_format, condition.system_prompt, condition.prompt_suffix
        self.chat = ChatFormat.of(load_tokenizer(source), *settings)
        self.condition = replace(condition, thinking_format=self.chat.thinking.name)
        self.engine, _ = load_engine(
            source, condition.dtype, int8=condition.int8, attention=self.arguments.attention, chat=self.chat
        )
        self.tokenizer = self.chat.encoder.tokenizer
        turn = [{"role": "user", "content": "s1jax question"}]
        self.generation_prompt = self._render(turn, True).removeprefix(self._render(turn, False))
        self._columns = dict(
            model=short_path(self.arguments.model), weights=source.fingerprint, tokenizer=source.tokenizer_fingerprint,
            seed=self.arguments.seed, commit=commit(),
        )  # fmt: skip

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> S1jaxLM:
        """Return a model of these model arguments. lm-eval's --batch_size and --device are for torch: `num_rows` and JAX decide here."""
        return cls(**arg_dict)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> S1jaxLM:
        """Do the same for the arguments as one text, `NAME=VALUE,NAME=VALUE`."""
        return super().create_from_arg_string(arg_string)

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """A name under which lm-eval may keep requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text as `hf` does: special tokens in it are read as such."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.chat.decode([self.prefix_token_id]))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the text of the model's chat template."""
        return self._render(chat_history, add_generation_prompt, not add_generation_prompt)

    def _render(self, history: list[dict[str, str]], opens_answer: bool, continues_answer: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                history, tokenize=False, add_generation_prompt=opens_answer, continue_final_message=continues_answer
            )
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return for each context and continuation the log-likelihood, and whether greedy decoding would write the continuation.

        A context that is too long loses its beginning, as in `hf`. Raises UserError if there is no room for any of it.
        """
        longest = self.engine.model.config.context_length + 1  # the last id is not read
        pairs, num_cut = [], 0
        for _, context, continuation in requests:
            if (room := longest - len(continuation)) < 1:
                raise UserError(f"a continuation has {len(continuation)} tokens; the model has {longest - 1} positions")
            num_cut += len(context) > room
            pairs.append((context[-room:], continuation))
        if num_cut:
            logger.warning("%d of %d contexts are too long and lose their beginning", num_cut, len(pairs))
        return [
            (float(found.logprobs.sum(dtype=float)), bool(found.is_greedy.all()))
            for found in self.engine.score_all(pairs)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text. A text longer than the model's context is scored window by window."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.engine.model.config.context_length, 1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the answer to each request, without its thought and cut before the first string of its `until`.

        Repeats of a request are samples of their own. All requests decode together. Raises UserError for a generation setting that the
        engine does not have, and for a request that does not fit the model.
        """
        repeats: Counter[tuple[str | None, str]] = Counter()
        jobs = []
        for request in requests:
            repeat = request.task_name, request.args[0]
            jobs.append(self._request(request, repeats[repeat]))
            repeats[repeat] += 1
        answers, num_rows = [""] * len(requests), self.arguments.num_rows
        with (
            self._rows() as append,
            progress(len(jobs), "decode", "answer", hidden=disable_tqdm, estimate_after=num_rows) as bar,
        ):
            for index, (completion,) in self.engine.stream(jobs, num_rows=num_rows, show_tokens=bar.show_tokens):
                until = _stop_strings(requests[index].args[1])
                thinking, answer = self._split(completion)
                append(self._row(requests[index], jobs[index], until, completion, thinking, answer))
                # The line break behind the delimiter belongs to neither.
                answers[index] = answer.lstrip() if self.is_asked else answer
                for text in until:
                    answers[index] = answers[index].partition(text)[0]
                bar.update(1)
        return answers

    def _request(self, instance: Instance, sample: int) -> Request:
        context, options = instance.args
        try:
            request = Request(
                tuple(self._prompt(context)),
                self._condition(options),
                tuple(self.chat.encode_text(self.condition.ignore_text)),
                tuple(self.chat.encode_final(self.condition.wrap_up)),
                thinks=self.is_asked and self.chat.thinking.thinks,
                seed=self.arguments.seed,
                problem=zlib.crc32(context.encode()) & 0x7FFFFFFF,
                sample=sample,
                # An answer may begin with white space, so white space alone does not end it before lm-eval's cut.
                stop=tuple(text for text in _stop_strings(options) if text.strip()),
            )
            self.engine.check(request)
        except UserError as error:
            raise UserError(
                f"request {instance.doc_id} of task {instance.task_name}: {error} (--gen_kwargs changes a task's own settings, such as "
                "max_gen_toks, which is max_answer_tokens here)"
            ) from None
        return request

    def _prompt(self, context: str) -> list[int]:
        """Return the ids of the text that the model continues."""
        if not self.is_asked:
            return self.tok_encode(context)
        if self.generation_prompt not in context:
            return self.chat.encode_prompt(context)
        if self.condition.prompt_suffix or self.condition.system_prompt:
            raise UserError(
                "prompt_suffix and system_prompt have no effect with --apply_chat_template: lm-eval writes the prompt"
            )
        if self.chat.thinking.thinks and not context.endswith(self.generation_prompt):
            raise UserError(
                "the task begins the answer itself (gen_prefix), but the model must think before it answers"
            )
        return self.tok_encode(context, add_special_tokens=False) + list(self.chat.delimiters.think)

    def _condition(self, options: dict[str, Any]) -> Condition:
        """Return the condition with a task's own generation settings."""
        given = {k: v for k, v in options.items() if v is not None and (k, v) != ("num_beams", 1)}
        if unknown := given.keys() - {"until", "do_sample", "temperature", *_ANSWER_LIMITS, *_FILTERS}:
            raise UserError(f"the engine has no generation setting {', '.join(sorted(unknown))}")
        # A task that samples and names no temperature means 1, as in transformers.
        temperature = float(given.get("temperature", self.condition.temperature or bool(given.get("do_sample"))))
        if given.get("do_sample") is False:
            temperature = 0.0
        filters = {name: given.get(name, getattr(self.condition, name)) for name in _FILTERS}
        return replace(
            self.condition,
            max_answer_tokens=next((given[k] for k in _ANSWER_LIMITS if k in given), self.condition.max_answer_tokens),
            temperature=temperature,
            **(filters if temperature else _FILTERS),
        )

    def _split(self, completion: Completion) -> tuple[str, str]:
        """Return the text of the thinking and of the answer."""
        if self.is_asked:
            return self.chat.split_completion(completion.tokens, completion.num_thinking)
        return "", self.chat.decode(completion.tokens, skip_special_tokens=True)

    @contextlib.contextmanager
    def _rows(self) -> Iterator[Any]:
        """Give a function that appends a row to the output, if there is one."""
        if self.output is None:
            yield lambda row: None
            return
        with Lock(self.output), jsonl.Appender(self.output) as file:
            yield lambda row: file.append([row])

    def _row(
        self, instance: Instance, request: Request, until: list[str], completion: Completion, thinking: str, answer: str
    ) -> dict[str, Any]:
        return {
            "task": instance.task_name,
            "doc_id": instance.doc_id,
            "sample_index": request.sample,
            **vars(request.condition),
            "thinks": request.thinks,
            "until": until,
            **self._columns,
            "num_thinking_tokens": completion.num_thinking,
            "num_forced_tokens": completion.num_forced,
            "num_ignored": completion.num_ignored,
            "num_answer_tokens": completion.num_answer,
            "finish_reason": completion.finish_reason,
            "context": instance.args[0],
            "thinking": thinking,
            "answer_text": answer,
        }


def _stop_strings(options: dict[str, Any]) -> list[str]:
    """Return the strings of `until`, which may be one, none or empty."""
    until = options.get("until") or []
    return [text for text in ([until] if isinstance(until, str) else until) if text]
