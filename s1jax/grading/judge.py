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
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

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
_PAUSES = (1, 2, 4, None)
"""Seconds after each try that met a busy judge; None: there is no further try."""
_SECONDS = 120
_COLUMNS = ("key", "model", "prompt", "reply")
_BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP states after which it is worth trying again."""


class Judge:
    """Context manager that asks a judge. May be used from several threads. The caller holds the lock of its file."""

    def __init__(self, url: str, model: str, cache: Path):
        """`url` is the address before `/chat/completions`. A key in `OPENAI_API_KEY` is sent along."""
        self.url, self.model, self.cache = url.rstrip("/"), model, cache
        if not re.match(r"https?://.", url):
            raise UserError(f"judge is {shortened(url)}: it must be an address such as http://localhost:8000/v1")
        self._appends = threading.Lock()

    def __enter__(self) -> Judge:
        known = [row for _, row in jsonl.read(self.cache)] if self.cache.exists() else []
        if not all(isinstance(row, dict) and row.keys() == set(_COLUMNS) for row in known):
            raise UserError(f"{self.cache} holds other rows than replies of a judge: give another --judge-cache")
        self._replies = {row["key"]: row["reply"] for row in known}
        self._file = jsonl.Appender(self.cache)
        self._file.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._file.__exit__(kind)

    def are_equal(self, question: str, answer: str, gold: str) -> bool | None:
        """Return whether two answers are equal, None if the reply does not end in Yes or No.

        Raises UserError if the judge does not answer.
        """
        first, second = sorted((answer, gold), key=lambda text: hashlib.sha256(text.encode()).digest())
        prompt = _PROMPT.format(question=question, first=first, second=second)
        key = hashlib.sha256(json.dumps([self.model, prompt]).encode()).hexdigest()
        if key not in self._replies:
            reply = self._ask(prompt)
            with self._appends:
                self._replies[key] = reply
                self._file.append([dict(zip(_COLUMNS, (key, self.model, prompt, reply), strict=True))])
        last = self._replies[key].strip().rpartition("\n")[2].strip(" *.").casefold()
        return {"yes": True, "no": False}.get(last)

    def _ask(self, prompt: str) -> str:
        """Return the reply to a prompt. A judge that is busy is asked again, after 1, 2 and 4 seconds."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        for pause in _PAUSES:
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                    return str(json.load(answer)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}: {shortened(error.read(2000).decode(errors='replace'))}"
                is_busy = error.code in _BUSY
            except (OSError, http.client.HTTPException) as error:
                why, is_busy = str(getattr(error, "reason", error)) or type(error).__name__, True
            except (ValueError, KeyError, IndexError, TypeError):
                why, is_busy = "its reply is not one of the OpenAI protocol", False
            if not is_busy or pause is None:
                break
            time.sleep(pause)
        raise UserError(f"the judge at {self.url} did not answer: {why}. Replies so far are in {self.cache}")
