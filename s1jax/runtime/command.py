"""What every command does around its work: environment, error messages and exit codes.

In: the `main` function of a command. Out: 0 for success, 1 for bad input (one message, no traceback), 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from s1jax.runtime.errors import UserError
from s1jax.runtime.files import ROOT


def program() -> str:
    """Return how the command that runs was called: `python launch/NAME.py` or `python -m data_tools.NAME`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("data_tools."):
        return f"python -m {spec.name}"
    script = Path(sys.argv[0])
    inside = script.is_file() and script.resolve().is_relative_to(ROOT)
    return f"python {script.resolve().relative_to(ROOT) if inside else script.name}"


def listed(problems: Sequence[str], shown: int = 8) -> str:
    """Return problems a line each, the first `shown` of them, and how many more there are."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "".join(f"\n  {problem}" for problem in [*problems[:shown], *more])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where there are more or none."""
    return f"{number} {noun}" + "s" * (number != 1)


# What to do about a device that ran out of memory.
ROOM = (
    "In training give more devices, fewer --data.rows-per-micro-batch, a shorter --data.row-length, a smaller --step.loss-chunk or "
    "--step.remat full; in decoding fewer rows at a time, or --int8"
)


def run_command(main: Callable[[], None]) -> None:
    """Run a command. Bad input (UserError, OSError) and a device that ran out of memory are one message and exit code 1.

    `S1JAX_TRACEBACK=1` in the environment shows where an error was raised. Compiled programs are kept for later runs in the user's cache
    folder, or where JAX_COMPILATION_CACHE_DIR says (if it is empty: nowhere).
    """
    # JAX would take no more than three quarters of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(caches) / "s1jax" / "compiled"))
    try:
        main()
    except BrokenPipeError:  # who read the output has gone; nor may Python's last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (UserError, OSError) as error:
        if os.environ.get("S1JAX_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
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
