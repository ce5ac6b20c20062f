"""Fields of config dataclasses: `check_types` when one is made, and `with_paths` when it was read from a file or a command line."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tyro import MISSING

from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

Config = TypeVar("Config")

_INPUT, _OUTPUT = "a path to read", "a path to write"
InputPath = Annotated[str, _INPUT]
"""A file or directory to read, or the name of something on the hub."""
OutputPath = Annotated[str, _OUTPUT]
"""A file or directory to write."""

_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text", types.NoneType: "None"}


def check_types(config: Any) -> None:
    """Raise UserError naming the first field of a dataclass, or of one in it, whose value is not of the type it is declared with.

    An integer is a number too; True and False are neither.
    """
    for name, hint in _hints(config.__class__).items():
        value = getattr(config, name)
        if value is MISSING:  # the command line must give it
            continue
        if not _fits(value, hint):
            raise UserError(f"{name} is {shortened(value)}: it must be {described(hint)}")
        if dataclasses.is_dataclass(value):
            check_types(value)


@functools.cache
def _hints(config_type: Any) -> dict[str, Any]:
    hints = get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in parts)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def described(hint: Any) -> str:
    """Name the values of a type in a few words."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind in (Union, types.UnionType):
        return " or ".join(map(described, parts))
    if kind is tuple:
        return f"a tuple, each item {described(parts[0])}"
    return _KINDS.get(hint) or f"a {hint.__name__}"


def with_paths(config: Config, folders: Sequence[Path] = ()) -> Config:
    """Return a config whose paths begin with the home directory instead of `~`, and in which relative paths mean `folders`.

    A path to write is in the first folder; a path to read is in the first folder that has it. Without folders, relative paths stay.
    """
    changes: dict[str, Any] = {}
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            changes[name] = with_paths(value, folders)
        elif isinstance(value, Path):
            changes[name] = Path(os.path.expanduser(value))
        elif isinstance(value, str | tuple) and (role := _role(hint)):
            paths = [value] if isinstance(value, str) else value
            settled = tuple(_settled(os.path.expanduser(path), role, folders) for path in paths)
            changes[name] = settled[0] if isinstance(value, str) else settled
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def _role(hint: Any) -> str | None:
    """Return the mark of a path in an annotation; it may be inside a union."""
    parts = get_args(hint)
    return next(filter(None, (part if part in (_INPUT, _OUTPUT) else _role(part) for part in parts)), None)


def _settled(value: str, role: str, folders: Sequence[Path]) -> str:
    if not folders or os.path.isabs(value) or not value.strip():
        return value
    folder = folders[0]
    if role == _INPUT:
        # Otherwise it may be the id of a model, a data set (ORG/NAME:SUBSET:SPLIT), a benchmark or a source of s1 (s1:NAME).
        is_path = not re.fullmatch(r"[\w.-]+(/[\w.-]+)?([@:].*)?", value) or value.endswith(
            (".jsonl", ".json", ".parquet")
        )
        found = next((folder for folder in folders if (folder / value).exists()), folder if is_path else None)
        if found is None:
            return value
        folder = found
    # The same path in its short form: it names the model in rows and figures.
    return value if folder == Path.cwd() else str(folder / value)
