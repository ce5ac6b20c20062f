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
import os
import re
import stat
import subprocess
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

ROOT = Path(__file__).resolve().parents[1]
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

    Raises ValueError for an unknown name (listing the known ones), for a config of another command, and for one that does not load.
    """
    path = Path(name).expanduser() if name.endswith(".py") else ROOT / "configs" / f"{name}.py"
    if not path.is_file():
        names = ", ".join(config_names(config_type))
        raise ValueError(f"no config {name!r}; give a path ending in .py, or one of: {names}")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(_config_mistake(path, error)) from error
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, config_type):
        types = config_type if isinstance(config_type, tuple) else (config_type,)
        wanted = " or ".join(cls.__name__ for cls in types)
        raise ValueError(f"{path} has no CONFIG of type {wanted}; it holds {type(config).__name__}")
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


def program() -> str:
    """Return how the command that runs was called: `python launch/NAME.py` or `python -m data_tools.NAME`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("data_tools."):
        return f"python -m {spec.name}"
    script = Path(sys.argv[0])
    inside = script.is_file() and script.resolve().is_relative_to(ROOT)
    return f"python {script.resolve().relative_to(ROOT) if inside else script.name}"


def parse_command(
    description: str, config_type: type[Config] | tuple[type[Config], ...], argv: Sequence[str] | None = None
) -> Config:
    """Parse `CONFIG [--field value ...]`: the named config, of this type or one of these, with typed overrides.

    Prints help and exits for `--help`; raises ValueError for an unknown config or field, listing the valid ones.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if name is None:
        if "--help" in argv or "-h" in argv:
            print(f"{description}\n\nusage: {program()} CONFIG [--field value ...]")
            print(f"configs: {', '.join(config_names(config_type))}\n`CONFIG --help` lists the fields of that config.")
            sys.exit(0)
        names = ", ".join(config_names(config_type))
        raise ValueError(f"which config? Give a path ending in .py, or one of: {names}")
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

    Raises ValueError for an unknown field, listing the valid ones, and for a value that cannot be read.
    """
    import tyro

    argv = list(sys.argv[1:] if argv is None else argv)
    valid = sorted(field_flags(config_type))
    for flag in (arg.split("=")[0] for arg in argv if arg.startswith("--") and len(arg) > 2):
        if flag.replace("_", "-") not in (*valid, "--help"):
            raise ValueError(f"unknown field {flag}; the fields are: {' '.join(valid)}")
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_type, prog=usage or program(), args=argv, description=description, **keywords)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise ValueError(_unboxed(errors.getvalue())) from None


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
        if dataclasses.is_dataclass(hint):
            flags += field_flags(hint, flag + ".")
        else:
            flags.append(flag)
            if hint is bool:
                head, _, last = flag.rpartition(".")
                flags.append(f"{head}.no-{last}" if head else f"--no-{flag[2:]}")
    return flags


def listed(problems: Sequence[str], shown: int = 8) -> str:
    """Return problems a line each, the first `shown` of them, and how many more there are."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "".join(f"\n  {problem}" for problem in [*problems[:shown], *more])


def to_json(config: Any) -> str:
    """Return the resolved config as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where there are more or none."""
    return f"{number} {noun}" + "s" * (number != 1)


def config_hash(config: Any, exclude: Sequence[str] = (), **also: str) -> str:
    """Return 12 hex digits that identify the resolved config, but for the top-level fields in `exclude`, and what is named besides."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in exclude} | also
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def write_file(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, over the one that may be there; its directory is made where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def check_writable(path: Path) -> None:
    """Raise ValueError unless a file can be written at `path`, in directories that may be yet to make; nothing is left behind."""
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode) or not os.access(path, os.W_OK):
                raise ValueError(f"{path} cannot be written: it is no file, or a protected one")
        tempfile.TemporaryFile(dir=next(parent for parent in path.parents if parent.exists())).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def commit() -> str:
    """Return the git commit of this checkout, with a `+` where files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    result = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if result.returncode:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    return result.stdout.strip() + ("+" if changed else "")


# What to do about a device that ran out of memory.
ROOM = (
    "In training give more devices, fewer --data.rows-per-pass, a shorter --data.row-length, a smaller --step.loss-chunk or --step.remat "
    "full; in decoding fewer rows at a time, or --int8"
)


def run_command(main: Callable[[], None]) -> None:
    """Run a command; bad input (ValueError, OSError) is printed as one message and exits with 1, as is a device that ran out of memory.

    `S1JAX_TRACEBACK=1` in the environment shows where it was raised; the message says so where a ValueError is not ours, and
    so may not name the cause. What is compiled is kept for later runs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says
    where (empty: nowhere).
    """
    _ask_for_huge_pages()
    # JAX would take no more than three quarters of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(caches) / "s1jax" / "compiled"))
    try:
        main()
    except BrokenPipeError:  # who read the output has gone; nor may Python's last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (ValueError, OSError) as error:
        if os.environ.get("S1JAX_TRACEBACK"):
            raise
        foreign = isinstance(error, ValueError) and not _raised_here(error)
        hint = " (S1JAX_TRACEBACK=1 shows where this was raised)" if foreign else ""
        print(f"error: {error}{hint}", file=sys.stderr)
        _end_failed()
    except Exception as error:
        is_memory = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
        if is_memory and not os.environ.get("S1JAX_TRACEBACK"):
            reason = str(error).partition("RESOURCE_EXHAUSTED")[2].strip(": ").splitlines()[0].rstrip(".")
            print(f"error: out of memory on a device: {reason}. {ROOM}", file=sys.stderr)
        elif _is_one_of_several():
            traceback.print_exc()
        else:
            raise
        _end_failed()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _ask_for_huge_pages() -> None:
    """Start this command again with GLIBC_TUNABLES, unless it is set: arrays on huge pages, where Linux gives them to who asks.

    A training step on a CPU touches gigabytes of fresh memory, and in small pages a sixth of its time goes into mapping them. glibc reads
    the variable only as a process starts. A script that others run within their process (tests, say) is left alone.
    """
    with contextlib.suppress(OSError):  # no such file: another system, or no huge pages
        given = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        if _is_ours() and "[madvise]" in given and "GLIBC_TUNABLES" not in os.environ:
            os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_ours() -> bool:
    """Return whether this process was started to run a command of ours, which is not run within another program (tests, say)."""
    script, spec = (getattr(sys.modules["__main__"], name, None) for name in ("__file__", "__spec__"))
    named = script in sys.orig_argv or (spec is not None and spec.name in sys.orig_argv)
    return named and Path(script or "").resolve().parent in (ROOT / "launch", ROOT / "data_tools")


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _end_failed() -> NoReturn:
    """Exit with 1, at once where this process is ours: else JAX waits for others, which may wait for it, and Orbax for its threads."""
    if _is_ours():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def _raised_here(error: BaseException) -> bool:
    """Return whether this project's own code raised an error, rather than a library."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts
