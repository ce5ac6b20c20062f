"""The OpenAI protocol for chats: a prompt -> the messages of a request; the body of a response -> a reply. Nothing here is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from s1jax.runtime import jsonl


class Prompt(NamedTuple):
    """One call."""

    text: str
    system: str = ""
    """System prompt; "" for none."""
    sample: int = 0
    """Index of the sample. Calls that differ only in it have replies of their own."""


@dataclass(frozen=True)
class Reply:
    """What a model answered."""

    text: str
    reasoning: str
    """Its thinking: a part of the message of its own, or what stands in `<think>` tags; "" if there is none."""
    finish_reason: str
    """What ended the reply: "stop", "length" or another word of the server; "" if it does not say."""
    prompt_tokens: int
    """Tokens of the prompt; 0 if the server does not say."""
    completion_tokens: int
    """Tokens of thinking and text; 0 if the server does not say."""


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """Return the messages of a request."""
    parts = [("system", prompt.system)] if prompt.system else []
    parts.append(("user", prompt.text))
    # Half a character (a lone surrogate) cannot be sent: a question mark takes its place.
    return [{"role": role, "content": text.encode(errors="replace").decode()} for role, text in parts]


def read_reply(body: bytes) -> Reply | None:
    """Return the reply in the body of a response, None if the body is not one of the protocol."""
    value = jsonl.value_of(body)
    try:
        choice, usage = value["choices"][0], value.get("usage") or {}
        message, finish_reason = choice["message"], choice.get("finish_reason") or ""
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        tokens = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    texts = (text, reasoning, finish_reason)
    if not (all(isinstance(part, str) for part in texts) and all(isinstance(count, int) for count in tokens)):
        return None
    if not reasoning:
        text, reasoning = _split_thinking(text)
    return Reply(text, reasoning, finish_reason, *tokens)


def error_message(body: object) -> str:
    """Return what a server says about an error, with a colon before it; "" if it says nothing."""
    message = body.get("message") if isinstance(body, dict) else None
    return f": {' '.join(message.split())}" if isinstance(message, str) and message.strip() else ""


def _split_thinking(text: str) -> tuple[str, str]:
    """Return answer and thinking of a text with `<think>` tags. The chat template may have written the first tag already."""
    if not (text.lstrip().startswith("<think>") or "</think>" in text):
        return text, ""
    thinking, _, answer = text.partition("</think>")
    return answer.strip(), thinking.lstrip().removeprefix("<think>").strip()
