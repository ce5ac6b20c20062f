"""A language model as a judge of answers, for what rules cannot compare: prose, names, formulas in words. Off unless it is asked for.

In: a question and two answers to it. Out: whether the judge says that they are equal. The judge runs behind the OpenAI protocol for chats,
as vLLM and most services do. It does not learn which of the two answers is the gold answer: their order depends on their texts alone.

Each reply is kept in a file. So a run that ends early goes on from there, and a second run asks nothing again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from s1jax.runtime.chat_protocol import Prompt
from s1jax.runtime.endpoint import Endpoint, EndpointLimits, Failure

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
JUDGE_LIMITS = EndpointLimits(timeout_seconds=120, max_tries=4)


class Judge:
    """Context manager that asks a judge. May be used from several threads. The caller holds the lock of its file."""

    def __init__(self, url: str, model: str, cache: Path, limits: EndpointLimits = JUDGE_LIMITS):
        """`url` is the address before `/chat/completions`. A key in `OPENAI_API_KEY` is sent along. Raises UserError for no address."""
        self.model = model
        self._endpoint = Endpoint(url, model, cache, limits, {"temperature": 0}, role="judge")

    def __enter__(self) -> Judge:
        """Raise UserError if the file holds anything but replies."""
        self._endpoint.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._endpoint.__exit__(kind)

    def stop(self) -> None:
        """Give up questions that wait for a busy judge."""
        self._endpoint.stop()

    def are_equal(self, question: str, answer: str, gold: str) -> bool | None:
        """Return whether two answers are equal, None if the judge gives no Yes and no No, or does not take the question.

        Raises UserError if the judge does not answer.
        """
        if len(answer) > MAX_LENGTH:
            return None
        first, second = sorted((answer, gold), key=_digest)
        reply = self._endpoint.ask(Prompt(_PROMPT.format(question=question, first=first, second=second)))
        if isinstance(reply, Failure):
            if reply.is_final:
                return None
            raise self._endpoint.error(reply.reason)
        last = reply.text.strip().rpartition("\n")[2].strip(" *.").casefold()
        return {"yes": True, "no": False}.get(last)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
