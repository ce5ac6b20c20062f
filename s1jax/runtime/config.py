"""Configs by name, and typed overrides from the command line: `CONFIG [--field value ...]` -> a frozen dataclass.

A config is a module `configs/NAME.py` with one dataclass instance `CONFIG`. `tyro` makes the options and the help from the types and
docstrings of its fields. Only the name of the config is read here: `tyro.extras.overridable_config_cli` would import every config, so that
a mistake in one breaks all commands, and takes no path of a file outside `configs/`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from s1jax.runtime.command import program
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import ROOT

Config = TypeVar("Config")


def config_names(config_type: type[Any] | tuple[type[Any], ...] = object) -> list[str]:
    """Return the names of the project's configs of this type (or of one of these types)."""
    names = []
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        with contextlib.suppress(UserError):
            load_config(path.stem, config_type)
            names.append(path.stem)
    return names


def load_config(name: str, config_type: type[Config] | tuple[type[Config], ...]) -> Config:
    """Return the `CONFIG` of `configs/NAME.py`, or of the file at `name` if that ends in `.py`.

    Raises UserError for an unknown name, for a file with a mistake, and for a `CONFIG` that is not of this type (or one of these types).
    """
    path = Path(name).expanduser() if name.endswith(".py") else ROOT / "configs" / f"{name}.py"
    if not path.is_file():
        names = ", ".join(config_names(config_type))
        raise UserError(f"no config {name!r}; give a path ending in .py, or one of: {names}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))  # a config may import another one
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        line = f", line {lines[-1]}" if lines else ""
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{path}{line}: {kind}{error}") from error
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, config_type):
        types = config_type if isinstance(config_type, tuple) else (config_type,)
        wanted = " or ".join(cls.__name__ for cls in types)
        raise UserError(f"{path} has no CONFIG of type {wanted}; it holds {type(config).__name__}")
    return config


def parse_command(
    description: str, config_type: type[Config] | tuple[type[Config], ...], argv: Sequence[str] | None = None
) -> Config:
    """Load the config that the first argument names, and apply the other arguments as overrides.

    Prints help and exits for `--help`. Raises UserError as `load_config` and `parse_arguments` do.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        default = load_config(argv[0], config_type)
        return parse_arguments(description, type(default), argv[1:], default, f"{program()} {argv[0]}")
    names = ", ".join(config_names(config_type))
    if "--help" in argv or "-h" in argv:
        print(f"{description}\n\nusage: {program()} CONFIG [--field value ...]")
        print(f"configs: {names}\n`CONFIG --help` lists the fields of that config.")
        sys.exit(0)
    raise UserError(f"which config? Give a path ending in .py, or one of: {names}")


def parse_arguments(
    description: str,
    config_type: type[Config],
    argv: Sequence[str] | None = None,
    default: Config | None = None,
    usage: str | None = None,
) -> Config:
    """Parse `--field value` arguments into a `config_type`; fields that are not given come from `default` if there is one.

    Prints help and exits for `--help`. Raises UserError, with tyro's message, for an unknown or missing field or a value of the wrong type.
    """
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_type, prog=usage or program(), args=argv, description=description, **keywords)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise UserError(_as_one_line(errors.getvalue())) from None


def _as_one_line(text: str) -> str:
    """Return an error message of tyro as one line: without the frame and the title above it, its parts separated by semicolons."""
    rows = [row.strip("│| ") for row in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[1:]]
    rows = [row if row.strip("─-+╰╯") else "\0" for row in rows]  # a ruled line separates two parts
    parts = (" ".join(part.split()) for part in " ".join(rows).split("\0"))
    return "; ".join(part for part in parts if part)
