"""Configs and commands: a config name and typed overrides -> a frozen dataclass; and how every command reports its errors.

A config is a module `configs/NAME.py` with one frozen dataclass instance `CONFIG`, whose type belongs to the module that consumes it.
Overrides and `--help` come from tyro, which reads types and docstrings. `run_command` turns bad input into one line and a non-zero exit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import re
import sys
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from s1jax.runtime.command import program
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import ROOT

Config = TypeVar("Config")


def config_names(config_type: type[Any] | tuple[type[Any], ...] = object) -> list[str]:
    """Return the names of the configs that come with the project, and are of this type."""

    def fits(name: str) -> bool:
        try:
            return bool(load_config(name, config_type))
        except ValueError:
            return False

    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
    return [name for name in names if config_type is object or fits(name)]


def load_config(name: str, config_type: type[Config] | tuple[type[Config], ...]) -> Config:
    """Return the `CONFIG` of `configs/NAME.py`, given as a name or as a path to any such file, of this type or one of these.

    Raises UserError for an unknown name (listing the known ones), for a config of another command, and for one that does not load.
    """
    path = Path(name).expanduser() if name.endswith(".py") else ROOT / "configs" / f"{name}.py"
    if not path.is_file():
        names = ", ".join(config_names(config_type))
        raise UserError(f"no config {name!r}; give a path ending in .py, or one of: {names}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(_config_mistake(path, error)) from error
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, config_type):
        types = config_type if isinstance(config_type, tuple) else (config_type,)
        wanted = " or ".join(cls.__name__ for cls in types)
        raise UserError(f"{path} has no CONFIG of type {wanted}; it holds {type(config).__name__}")
    return config


def _config_mistake(path: Path, error: Exception) -> str:
    """Return where in a config's file an error is, and what it is; for a field that does not exist, which ones do."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if Path(frame.filename).resolve() == path.resolve()), None)
    message = str(error)
    if isinstance(error, SyntaxError) and error.filename:
        path, line, message = Path(error.filename), error.lineno, error.msg
    if found := re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message):
        loaded = [module for name, module in list(sys.modules.items()) if name.startswith(("s1jax.", "data_tools."))]
        cls = next((getattr(module, found[1]) for module in loaded if hasattr(module, found[1])), None)
        if dataclasses.is_dataclass(cls):
            names = ", ".join(field.name for field in dataclasses.fields(cls))
            message = f"{found[1]} has no field {found[2]}; its fields are: {names}"
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{path}{f', line {line}' if line else ''}: {kind}{message}"


def parse_command(
    description: str, config_type: type[Config] | tuple[type[Config], ...], argv: Sequence[str] | None = None
) -> Config:
    """Parse `CONFIG [--field value ...]`: the named config, of this type or one of these, with typed overrides.

    Prints help and exits for `--help`; raises UserError for an unknown config or field, listing the valid ones.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if name is None:
        if "--help" in argv or "-h" in argv:
            print(f"{description}\n\nusage: {program()} CONFIG [--field value ...]")
            print(f"configs: {', '.join(config_names(config_type))}\n`CONFIG --help` lists the fields of that config.")
            sys.exit(0)
        names = ", ".join(config_names(config_type))
        raise UserError(f"which config? Give a path ending in .py, or one of: {names}")
    default = load_config(name, config_type)
    return parse_arguments(description, type(default), argv, default, f"{program()} {name}")


def parse_arguments(
    description: str,
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    default: Config | None = None,
    usage: str | None = None,
) -> Config:
    """Parse typed `--field value` arguments into `config_type`, starting from `default` if there is one.

    Raises UserError for an unknown field, listing the valid ones, and for a value that cannot be read.
    """
    import tyro

    argv = list(sys.argv[1:] if argv is None else argv)
    valid = sorted(field_flags(config_type))
    for flag in (arg.split("=")[0] for arg in argv if arg.startswith("--") and len(arg) > 2):
        if flag.replace("_", "-") not in (*valid, "--help"):
            raise UserError(f"unknown field {flag}; the fields are: {' '.join(valid)}")
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_type, prog=usage or program(), args=argv, description=description, **keywords)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise UserError(_unboxed(errors.getvalue())) from None


def _unboxed(text: str) -> str:
    """Return the message in the box that tyro draws, with lines or in ASCII: what lies between its title and the next rule, as one line."""
    _, *rows = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() or [""]
    parts = itertools.groupby((row.strip("│| ") for row in rows), key=lambda row: bool(row.strip("─-+╰╯")))
    lines = next((list(lines) for is_text, lines in parts if is_text), [])
    return " ".join(" ".join(lines).split()).removeprefix("Error parsing ")


def field_flags(config_type: Any, prefix: str = "--") -> list[str]:
    """Return the command-line flags of a config's fields, nested ones joined by a dot; positional arguments have none."""
    import tyro

    flags = []
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        flag = prefix + field.name.replace("_", "-")
        hint = hints[field.name]
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        inner, *metadata = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if dataclasses.is_dataclass(inner):
            is_flat = any(getattr(extra, "name", None) == "" for extra in metadata)
            flags += field_flags(inner, prefix if is_flat else flag + ".")
        else:
            flags.append(flag)
            if hint is bool:
                head, _, last = flag.rpartition(".")
                flags.append(f"{head}.no-{last}" if head else f"--no-{flag[2:]}")
    return flags


def to_json(config: Any) -> str:
    """Return the resolved config as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def config_hash(config: Any, exclude: Sequence[str] = (), **also: str) -> str:
    """Return 12 hex digits that identify the resolved config, but for the top-level fields in `exclude`, and what is named besides."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in exclude} | also
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
