"""Configs by name, and typed overrides from the command line: `CONFIG [--field value ...]` -> a frozen dataclass.

A config is a module `configs/NAME.py` with one dataclass instance `CONFIG`. `tyro` makes the options and the help from the types and
docstrings of its fields. Only the name of the config is read here: `tyro.extras.overridable_config_cli` would import every config, so that
a mistake in one breaks all commands, and takes no path of a file outside `configs/`.

Paths: on the command line, a relative path starts at the working directory. In a config of `configs/` it starts at the project's folder; in
a config elsewhere, at the folder of that config, or at the project's folder if only that has it. `~` is the home directory everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro

from s1jax.runtime.command import program
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import described, with_paths
from s1jax.runtime.files import ROOT
from s1jax.runtime.terminal import shortened

Config = TypeVar("Config")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(f"{message}; see {program()} --help")


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
    path = Path(os.path.expanduser(name)) if name.endswith(".py") else ROOT / "configs" / f"{name}.py"
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a config, a file of Python")
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
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        line = f", line {lines[-1]}" if lines else ""
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{path}{line}: {kind}{' '.join(str(error).split())}") from error
    config = getattr(module, "CONFIG", None)
    types = config_type if isinstance(config_type, tuple) else (config_type,)
    wanted = " or ".join(cls.__name__ for cls in types)
    if not hasattr(module, "CONFIG"):
        raise UserError(f"{path} defines no CONFIG: it needs one of type {wanted}")
    if isinstance(config, type):
        raise UserError(f"{path}: CONFIG is the class {config.__name__}: call it with the values of its fields")
    if not isinstance(config, types):
        raise UserError(f"{path} has no CONFIG of type {wanted}; it holds {type(config).__name__}")
    folder = path.resolve().parent
    return with_paths(config, [ROOT] if folder == ROOT / "configs" else [folder, ROOT])


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

    Prints help and exits for `--help`. Raises UserError for an unknown or missing field or a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get("COLUMNS", "80").isdecimal() and int(os.environ.get("COLUMNS", "80")) < 40:
        os.environ["COLUMNS"] = "40"  # in fewer columns tyro finds no way to write a help text
    options = _options(config_type)
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            joined = _with_values_joined(argv, options)
            config = tyro.cli(config_type, prog=usage or program(), args=joined, description=description, **keywords)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        if (cut := [shortened(value, quotes=False) for value in argv]) != argv:
            parse_arguments(description, config_type, cut, default, usage)  # raises, with a short message
        raise UserError(_as_one_line(errors.getvalue(), argv, options)) from None
    return with_paths(config)


def _options(config_type: Any, prefix: str = "--") -> dict[str, Any]:
    """Return the options that tyro makes of a config class, each with the type of its field."""
    options: dict[str, Any] = {}
    marks = get_type_hints(config_type, include_extras=True)
    for name, kind in get_type_hints(config_type).items():
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(kind):
            is_flat = any(getattr(mark, "name", None) == "" for mark in get_args(marks[name]))
            options |= _options(kind, prefix if is_flat else f"{option}.")
        else:
            options[option] = kind
    return options


def _name(argument: str) -> str:
    """Return the option that an argument names, in the form of `_options`."""
    return re.sub(r"(^--|\.)no-", r"\1", argument.partition("=")[0].replace("_", "-"))


def _with_values_joined(argv: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Join a text option and a value that begins with a dash by `=`. Otherwise tyro takes such a value for an option."""
    joined: list[str] = []
    for argument in argv:
        takes_text = bool(joined) and options.get(joined[-1].replace("_", "-")) in (str, str | None, Path, Path | None)
        if takes_text and argument.startswith("-") and _name(argument) not in {*options, "-h", "--help"}:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _as_one_line(text: str, argv: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return an error message of tyro as one line: without its frame and the help of the field, its parts separated by semicolons."""
    rows = [row.strip("│| ") for row in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[1:]]
    rows = [row if row.strip("─-+╰╯") else "\0" for row in rows]  # a ruled line separates two parts
    parts = [" ".join(part.split()) for part in " ".join(rows).split("\0")]
    parts = [part for part in parts if part and not part.startswith(("Argument helptext", "Got errors"))]
    parts[-1] = re.sub(r"^For full helptext, (run|see):? ", "see ", parts[-1])
    if parts[0].startswith("Missing from ") and (lost := [option for option in options if f"{option} " in parts[0]]):
        parts[0] = f"give {' and '.join(lost)}"  # without the kind and the help of each
    wrong = re.search(r"^Error parsing (--[\w.-]+):|^invalid choice .* for argument '(--[\w.-]+)'", parts[0])
    option = _name(wrong[1] or wrong[2]) if wrong else ""
    if option in options:
        start = max(i for i, argument in enumerate(argv) if _name(argument) == option)
        values = list(itertools.takewhile(lambda argument: _name(argument) not in options, argv[start + 1 :]))
        kind = options[option]
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        else:
            values = values[:1]
        value = argv[start].partition("=")[2] or " ".join(values)
        parts[0] = f"{option} is {value!r}: it must be {described(kind)}"
    # Some options had the name of their group before their own name once, such as --decoding.output.
    unknown = [name for argument in argv if argument.startswith("--") and (name := _name(argument)) not in options]
    now = [short for name in unknown if "." in name and (short := f"--{name.rpartition('.')[2]}") in options]
    parts[1:1] = [f"use {', '.join(now)}"] if now else []
    parts[0] = re.sub(r"^Error parsing [\w.]+: ", "", parts[0])  # the class of a config
    return "; ".join(parts)
