"""A language model as a judge of answers, for what rules cannot compare: prose, names, formulas in words. Off unless it is asked for.

In: a question and two answers to it. Out: whether the judge says that they are equal. The judge runs behind the OpenAI protocol for chats,
as vLLM and most services do. It does not learn which of the two answers is the gold answer: their order depends on their texts alone.

Each reply is kept in a file. So a run that ends early goes on from there, and a second run asks nothing again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

_PROMPT = """Two students answered the same question. Decide whether their final answers are the same.

Question:
{question}

First answer:
{first}

Second answer:
{second}

Answers are the same if they have the same value or the same meaning, however they are written. Do not solve the question yourself. Give a
short reason. Then write a last line that is Yes if the answers are the same, and No if they are not."""
MAX_LENGTH = 1000
"""Characters of an answer above which the judge is not asked: such a text is no final answer."""
_PAUSES = (1, 2, 4, None)
"""Seconds after each try that met a busy judge; None: there is no further try."""
_SECONDS = 120
_MAX_REPLY = 2**20
_BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP states after which it is worth trying again."""
_REFUSED = (400, 413, 422)
"""HTTP states of a question that the judge does not take, for example because it is too long."""
_COLUMNS = ("key", "model", "prompt", "reply")


class Judge:
    """Context manager that asks a judge. May be used from several threads. The caller holds the lock of its file."""

    def __init__(self, url: str, model: str, cache: Path):
        """`url` is the address before `/chat/completions`. A key in `OPENAI_API_KEY` is sent along. Raises UserError for no address."""
        self.url, self.model, self.cache = url.rstrip("/"), model, cache
        try:
            parts = urlsplit(url)
            is_address = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable() and " " not in url
            )
        except ValueError:
            is_address = False
        if not is_address:
            raise UserError(f"judge is {shortened(url)}: it must be an address such as http://localhost:8000/v1")
        self._appends, self._stopped = threading.Lock(), threading.Event()

    def __enter__(self) -> Judge:
        """Raise UserError if the file holds anything but replies."""
        known = [row for _, row in jsonl.read(self.cache)] if self.cache.exists() else []
        if not all(_is_reply(row) for row in known):
            raise UserError(f"{self.cache} holds other rows than replies of a judge: give another --judge-cache")
        self._replies = {row["key"]: row["reply"] for row in known}
        self._file = jsonl.Appender(self.cache)
        self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._file.__exit__(kind)

    def stop(self) -> None:
        """Give up questions that wait for a busy judge."""
        self._stopped.set()

    def are_equal(self, question: str, answer: str, gold: str) -> bool | None:
        """Return whether two answers are equal, None if the judge gives no Yes and no No, or does not take the question.

        Raises UserError if the judge does not answer.
        """
        if len(answer) > MAX_LENGTH:
            return None
        first, second = sorted((answer, gold), key=_digest)
        prompt = _PROMPT.format(question=question, first=first, second=second)
        key = _digest(json.dumps([self.model, prompt]))
        if key not in self._replies:
            reply = self._ask(prompt)
            if reply is None:
                return None
            with self._appends:
                self._replies[key] = reply
                self._file.append([dict(zip(_COLUMNS, (key, self.model, prompt, reply), strict=True))])
        last = self._replies[key].strip().rpartition("\n")[2].strip(" *.").casefold()
        return {"yes": True, "no": False}.get(last)

    def _ask(self, prompt: str) -> str | None:
        """Return the reply to a prompt, None if the judge does not take it. A judge that is busy is asked again."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        why = "it was stopped"
        for pause in _PAUSES:
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                    return _content(answer.read(_MAX_REPLY))
            except urllib.error.HTTPError as error:
                if error.code in _REFUSED:
                    return None
                why, is_busy = f"HTTP {error.code} {error.reason}", error.code in _BUSY
            except (OSError, http.client.HTTPException) as error:
                why, is_busy = str(getattr(error, "reason", error)) or type(error).__name__, True
            if not is_busy or pause is None or self._stopped.wait(pause):
                break
        raise UserError(f"the judge at {self.url} did not answer: {shortened(why)}. Replies so far are in {self.cache}")


def _content(body: bytes) -> str:
    """Return the text in a reply of the OpenAI protocol. Raises UserError for any other reply."""
    reply = jsonl.value_of(body)
    try:
        content = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise UserError("the judge's reply is not one of the OpenAI protocol for chats")
    return content


def _is_reply(row: object) -> bool:
    return isinstance(row, dict) and row.keys() == {*_COLUMNS} and all(isinstance(row[name], str) for name in _COLUMNS)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
