"""A language model behind the OpenAI protocol for chats, which vLLM and most services speak: prompts -> replies.

Each reply is appended to a file when it comes. So a run that ends early goes on from there, and no answered call is repeated. The file may
hold replies of several models and settings. A call that fails is tried again after growing pauses. If it fails for good, that prompt has a
`Failure`, the others go on, and the next run asks again.

The package `openai` makes the connections. Its own retries are off: they cannot be stopped, count in no limit of requests per minute, and
do not see that a reply is cut off or empty.

The key comes from the environment (`OPENAI_API_KEY`). It is sent along and never written, also if the server repeats it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from s1jax.runtime import jsonl
from s1jax.runtime.chat_protocol import Prompt, Reply, error_message, messages_of, read_reply
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types
from s1jax.runtime.terminal import shortened

logger = logging.getLogger(__name__)

_PAUSES = (1, 2, 4, 8, 16, 32, 60)
"""Seconds before each further try; the last one repeats."""
_LONGEST_PAUSE = 600
"""The longest pause in seconds that a server may ask for (`Retry-After`)."""
_AWAY = (408, 429, 502, 503, 504)
"""HTTP states of a server that is busy or gone: it is worth trying again."""
_REFUSED = (400, 413, 422)
"""HTTP states of a prompt that the model does not take, for example because it is too long."""
_SHORTEST_KEY = 12
_NO_KEY = "EMPTY"  # the package insists on a key; servers that need none ignore it
_COLUMNS = {"key": str, "model": str, "messages": list, "sampling": dict, "sample": int}


@dataclass(frozen=True)
class EndpointLimits:
    """How hard an endpoint is worked, and what it costs. Nothing here changes a reply."""

    max_concurrent: int = 8
    """Calls under way at once."""
    requests_per_minute: float = 0.0
    """Largest number of requests per minute, further tries included; 0: as many as `max_concurrent` allows."""
    timeout_seconds: float = 600.0
    """Seconds without a reply after which a try counts as failed."""
    max_tries: int = 6
    """Tries per call. Between them are pauses of 1, 2, 4, ... seconds, or what the server asks for."""
    dollars_per_million_input: float = 0.0
    """Price of a million tokens of prompts, for the cost in the log."""
    dollars_per_million_output: float = 0.0
    """Price of a million tokens of replies, for the cost in the log."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("max_concurrent", 1), ("max_tries", 1), ("requests_per_minute", 0),
                            ("dollars_per_million_input", 0), ("dollars_per_million_output", 0)):  # fmt: skip
            if not least <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name} is {value}; it must be {least} or more")
        if not 0 < self.timeout_seconds < math.inf:
            raise UserError(f"timeout_seconds is {self.timeout_seconds}; it must be above 0")


@dataclass(frozen=True)
class Failure:
    """Why a call has no reply, after all tries."""

    reason: str
    kind: Literal["refused", "empty", "unusable", "away"]
    """The model does not take the prompt; its reply was empty; the reply could not be read; or nobody answered."""

    @property
    def is_final(self) -> bool:
        """Whether the model answered, and asking again later would help nobody."""
        return self.kind in ("refused", "empty")


class Endpoint:
    """Context manager that asks a model. May be used from several threads. The caller holds the lock of the file."""

    def __init__(
        self,
        url: str,
        model: str,
        cache: Path,
        limits: EndpointLimits | None = None,
        sampling: Mapping[str, Any] | None = None,
        role: str = "endpoint",
    ):
        """`url` is the address before `/chat/completions`; `cache` is the file of replies.

        `sampling` are further fields of a request, such as `temperature` and `max_tokens`; a `seed` among them is raised by the sample's
        index. `role` names the endpoint in messages. Raises UserError for no address, and for a key that cannot be sent.
        """
        self.url, self.model, self.cache, self.role = url.rstrip("/"), model, cache, role
        self.limits, self.sampling = limits or EndpointLimits(), dict(sampling or {"temperature": 0})
        if not _is_address(url):
            raise UserError(f"{role} is {shortened(url)}: it must be an address such as http://localhost:8000/v1")
        self._secret = os.environ.get("OPENAI_API_KEY", "").strip()
        if not re.fullmatch("[!-~]*", self._secret):
            raise UserError("OPENAI_API_KEY holds characters that no key has: set it again")
        if len(self._secret) >= _SHORTEST_KEY and self._secret in url:
            raise UserError(
                f"the address of the {role} holds the key: give the address alone, and the key as OPENAI_API_KEY"
            )
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._next_request = 0.0
        self._num_answered = self._input_tokens = self._output_tokens = 0

    def __enter__(self) -> Endpoint:
        """Raise UserError if the file holds anything but replies."""
        import openai

        self._places: dict[bytes, int] = {}
        """Where the row of each key begins. Replies may be too many for the memory."""
        self._end, self._is_known = 0, False
        self._index()
        timeout = openai.Timeout(self.limits.timeout_seconds, connect=min(10, self.limits.timeout_seconds))
        self._client = openai.OpenAI(api_key=self._secret or _NO_KEY, base_url=self.url, max_retries=0, timeout=timeout)
        self._file = jsonl.Appender(self.cache)
        self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._stopped.set()
        self._client.close()
        self._file.__exit__(kind)
        if self._input_tokens or self._num_answered:
            logger.info(
                "the %s answered %d calls: %d tokens of prompts, %d tokens of replies%s",
                self.role, self._num_answered, self._input_tokens, self._output_tokens, self._cost(),
            )  # fmt: skip

    def stop(self) -> None:
        """Give up calls that wait for another try."""
        self._stopped.set()

    def error(self, reason: str) -> UserError:
        """Return the error that says why the endpoint did not answer."""
        return UserError(f"the {self.role} at {self.url} did not answer: {reason}. Replies so far are in {self.cache}")

    def ask_all(self, prompts: Iterable[Prompt]) -> Iterator[tuple[int, Reply | Failure]]:
        """Yield the index of each prompt with its reply, as they come.

        Raises UserError if the endpoint refuses the key, the address or the model, or if it answers nobody any more: every call under way
        fails, and no reply of the model is known, or no server is there.
        """
        most = max(4, self.limits.max_concurrent)
        waiting: dict[Future[Reply | Failure], int] = {}
        numbered = enumerate(prompts)
        failed: list[Failure] = []  # since the server's last reply
        num_answered = self._num_answered
        with ThreadPoolExecutor(self.limits.max_concurrent, thread_name_prefix="endpoint") as threads:
            try:
                while True:
                    # Few prompts wait at a time, so that replies do not gather in memory.
                    for index, prompt in itertools.islice(numbered, self.limits.max_concurrent - len(waiting)):
                        waiting[threads.submit(self.ask, prompt)] = index
                    if not waiting:
                        break
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        index, result = waiting.pop(future), future.result()
                        if self._num_answered > num_answered:
                            num_answered, failed = self._num_answered, []
                        if isinstance(result, Failure):
                            failed.append(result)
                        are_away = all(failure.kind == "away" for failure in failed)
                        if len(failed) >= most and (are_away or not self._is_known):
                            raise self.error(failed[-1].reason)
                        yield index, result
            except BaseException:
                self.stop()
                threads.shutdown(cancel_futures=True)
                raise
        if failed and not self._is_known:
            raise self.error(failed[-1].reason)

    def ask(self, prompt: Prompt) -> Reply | Failure:
        """Return the reply to one prompt, from the file if it is there. Raises UserError if the endpoint refuses the key or the address."""
        if (place := self.place_of(prompt)) is not None:
            return Reply(**jsonl.row_at(self.cache, place)["reply"])
        key, row = self._row(prompt)
        reply = self._ask(row["messages"], row["sampling"])
        if isinstance(reply, Reply):
            with self._lock:
                self._num_answered += 1
                self._file.append([{"key": key.hex(), **row, "reply": asdict(reply)}])
                self._index()
        return reply

    def place_of(self, prompt: Prompt) -> int | None:
        """Return the byte at which the row of a prompt begins in the file, for `jsonl.row_at`; None if there is no reply."""
        key, _ = self._row(prompt)
        with self._lock:
            return self._places.get(key)

    def _row(self, prompt: Prompt) -> tuple[bytes, dict[str, Any]]:
        """Return what identifies a call: its key, and the columns that are known before the reply."""
        seed = self.sampling.get("seed")
        sampling = self.sampling if seed is None else self.sampling | {"seed": seed + prompt.sample}
        row = dict(model=self.model, messages=messages_of(prompt), sampling=sampling, sample=prompt.sample)
        return hashlib.sha256(json.dumps(list(row.values()), sort_keys=True).encode()).digest()[:16], row

    def _index(self) -> None:
        """Add the rows that the file has behind those that are known."""
        if not self.cache.exists():
            return
        for begin, end, row in jsonl.places(self.cache, self._end):
            if not _is_row(row):
                raise UserError(f"{self.cache} holds other rows than replies of a {self.role}: give another file")
            self._places[bytes.fromhex(row["key"])] = begin
            self._is_known = self._is_known or row["model"] == self.model
            self._end = end

    def _ask(self, messages: list[dict[str, str]], sampling: Mapping[str, Any]) -> Reply | Failure:
        """Return the reply to a call, or why there is none after all tries."""
        failure = Failure("it was stopped", "away")
        for number in range(1, self.limits.max_tries + 1):
            if not self._wait_for_turn():
                break
            result, pause = self._try(messages, sampling)
            if isinstance(result, Reply) or result.kind == "refused":
                return result
            failure = result
            pause = max(pause, _PAUSES[min(number, len(_PAUSES)) - 1])
            if number == self.limits.max_tries or self._stopped.wait(pause):
                break
        return failure

    def _wait_for_turn(self) -> bool:
        """Wait until another request may be sent; return False if the endpoint was stopped."""
        if self.limits.requests_per_minute:
            with self._lock:
                now = time.monotonic()
                turn = max(now, self._next_request)
                self._next_request = turn + 60 / self.limits.requests_per_minute
            self._stopped.wait(turn - now)
        return not self._stopped.is_set()

    def _try(self, messages: list[dict[str, str]], sampling: Mapping[str, Any]) -> tuple[Reply | Failure, float]:
        """Send one request; return the reply or what is wrong, and the pause in seconds that the server asks for."""
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                extra_body=dict(sampling),
            )
            return self._read(response.http_response.content), 0
        except openai.APIStatusError as error:
            code = error.status_code
            why = self._shown(f"HTTP {code} {error.response.reason_phrase}{error_message(error.body)}")
            if code in _REFUSED:
                return Failure(why, "refused"), 0
            if code in _AWAY or code >= 500:
                kind: Literal["away", "unusable"] = "away" if code in _AWAY else "unusable"
                return Failure(why, kind), _retry_after(error.response.headers.get("retry-after"))
        except openai.APITimeoutError:
            return Failure(f"no reply within {self.limits.timeout_seconds:g} seconds", "away"), 0
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return Failure(self._shown(str(cause) or type(cause).__name__), "away"), 0
        # The same request would be refused again. The error does not carry the server's own, which may hold the key.
        raise self.error(why)

    def _read(self, body: bytes) -> Reply | Failure:
        """Return the reply in a body, or what is wrong with it."""
        reply = read_reply(body)
        if reply is None:
            return Failure("its reply is not one of the OpenAI protocol for chats", "unusable")
        with self._lock:
            self._input_tokens += reply.prompt_tokens
            self._output_tokens += reply.completion_tokens
        # A reply that the limit cut before its first visible word would be cut again.
        if not (reply.text.strip() or reply.reasoning.strip() or reply.finish_reason == "length"):
            return Failure("its reply is empty", "empty")
        clean = self._without_key
        return replace(
            reply,
            text=clean(reply.text),
            reasoning=clean(reply.reasoning),
            finish_reason=clean(reply.finish_reason),
        )

    def _without_key(self, text: str) -> str:
        # A short key is no secret but a placeholder, such as EMPTY, and may be a word of the text.
        return text.replace(self._secret, "[OPENAI_API_KEY]") if len(self._secret) >= _SHORTEST_KEY else text

    def _shown(self, message: str) -> str:
        """Return a server's message for a user. The key goes first, since a cut could leave a half of it."""
        return shortened(self._without_key(message), 300, quotes=False)

    def _cost(self) -> str:
        prices = self.limits.dollars_per_million_input, self.limits.dollars_per_million_output
        dollars = (self._input_tokens * prices[0] + self._output_tokens * prices[1]) / 1e6
        return f", ${dollars:,.2f}" if any(prices) else ""


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # A name or a password in an address would be written with it.
        has_host = bool(parts.hostname) and parts.username is None
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and has_host and url.isprintable() and " " not in url


def _is_row(row: Any) -> bool:
    fields = {name: str for name in ("text", "reasoning", "finish_reason")} | dict(
        prompt_tokens=int, completion_tokens=int
    )
    return (
        _has(row, _COLUMNS | {"reply": dict})
        and _has(row["reply"], fields)
        and bool(re.fullmatch("[0-9a-f]{32}", row["key"]))
    )


def _has(row: Any, fields: Mapping[str, type]) -> bool:
    """Return whether a JSON value is an object of exactly these fields."""
    if not (isinstance(row, dict) and row.keys() == fields.keys()):
        return False
    return all(isinstance(row[name], kind) for name, kind in fields.items())


def _retry_after(header: str | None) -> float:
    """Return the seconds of a header `Retry-After`, which holds a number or a date; 0 without one."""
    seconds = 0.0
    if header:
        try:
            seconds = float(header)
        except ValueError:
            with contextlib.suppress(ValueError):
                seconds = parsedate_to_datetime(header).timestamp() - time.time()
    return min(seconds, _LONGEST_PAUSE) if seconds > 0 else 0
