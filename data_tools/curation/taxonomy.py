"""Taxonomies: a file of labels -> the labels, each with a code, a name and topics.

`msc` is the Mathematics Subject Classification with its neighbours in physics and the other sciences, 61 labels (`msc.json`). A file of
your own is a JSON array (.json) or JSON lines (.jsonl) of objects with a `name` and perhaps a `code` and `topics`. In any other text file
each line is a name, or a code, a tab and a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s1jax.data.encoder import check_text
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError

MSC = "msc"


@dataclass(frozen=True)
class Label:
    """One domain that a question may belong to."""

    code: str
    """A short code; "" if it has none."""
    name: str
    topics: tuple[str, ...] = ()
    """What belongs to it, for a reader."""


def read_taxonomy(source: str) -> list[Label]:
    """Return the labels of a taxonomy, in order: of `msc`, or of a file.

    Raises UserError for a file that cannot be read, a label without a name, a name or a code that is there twice, and fewer than two
    labels.
    """
    path = Path(__file__).with_name("msc.json") if source == MSC else Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"no taxonomy at {path}: give {MSC}, or a .json, .jsonl or text file of labels")
    labels: list[Label] = []
    seen: dict[str, str] = {}
    for where, value in _values(path):
        label = _to_label(value, f"{path}: {where}")
        for text in filter(None, (label.code, label.name)):
            if (before := seen.setdefault(text.casefold(), where)) != where:
                raise UserError(
                    f"{path}: {where} has {text!r}, and so has {before}: each label needs a name and a code of its own"
                )
        labels.append(label)
    if len(labels) < 2:
        raise UserError(f"{path} holds {len(labels)} labels: a taxonomy needs two or more")
    return labels


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield where each label of a file stands, and what stands there."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    jsonl.check_text_file(path, content[:512])
    if path.suffix == ".json":
        values = jsonl.value_of(content)
        if isinstance(values, UserError):
            raise UserError(f"{path} is {values}")
        if not isinstance(values, list):
            raise UserError(f"{path} is no JSON array of labels")
        yield from ((f"label {number}", value) for number, value in enumerate(values, start=1))
    elif path.suffix == ".jsonl":
        yield from ((f"line {number}", value) for number, value in jsonl.read(path))
    else:
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start + 1}") from None
        for number, line in enumerate(lines, start=1):
            code, _, name = line.rpartition("\t")
            if line.strip():
                yield f"line {number}", {"code": code, "name": name}


def _to_label(value: Any, where: str) -> Label:
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object with a name")
    code, name, topics = value.get("code", ""), value.get("name"), value.get("topics", [])
    if not isinstance(name, str) or not name.strip() or "\n" in name:
        raise UserError(f"{where} has no name of one line")
    if not isinstance(code, str):
        raise UserError(f"{where} has a code that is no text: write it in quotes")
    if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
        raise UserError(f"{where} has topics that are no list of texts")
    for text in (code, name, *topics):
        check_text(where, text)
    return Label(code.strip(), name.strip(), tuple(topics))
