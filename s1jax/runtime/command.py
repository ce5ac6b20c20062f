"""What every command does around its work: environment, messages on standard error, exit codes (0, 1 for an error, 130 for Ctrl-C).

A `UserError` is shown as one line, without a traceback. Modules report through `logging.getLogger(__name__)`; standard output is only for
results.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.terminal import open_standard_streams, shortened, visible

logger = logging.getLogger(__name__)

# Variables of JAX that change random draws or dtypes, which no column of a row tells, with their defaults.
_FIXED_VARIABLES = {
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
    "JAX_THREEFRY_PARTITIONABLE": "1",
    "JAX_RANDOM_SEED_OFFSET": "0",
    "JAX_ENABLE_X64": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
}
OUT_OF_MEMORY_ADVICE = (
    "In training use more devices, a smaller --data.rows-per-micro-batch, --data.row-length or --step.loss-chunk, or --step.remat full; "
    "in decoding use fewer rows at a time, or --int8"
)


def program() -> str:
    """Return how the running command was called: `python launch/NAME.py` or `python -m data_tools.NAME`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python {sys.argv[0]}" if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def listed(problems: Sequence[str], shown: int = 8) -> str:
    """Return the first `shown` problems, each on its own line, and the number of the others."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "".join(f"\n  {problem}" for problem in [*problems[:shown], *more])


def counted(number: int, noun: str) -> str:
    """Return a number and its noun; the noun is plural unless the number is 1."""
    return f"{number} {noun}" + "s" * (number != 1)


class _StderrHandler(logging.Handler):
    """Writes messages to standard error. A process other than the first writes only warnings and errors.

    The prefix of a line names the process if there are several, and the level of a warning or an error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        process = _process_of_several()
        if process and record.levelno < logging.WARNING:
            return
        name = "" if process is None else f"[process {process}] "
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # `sys.stderr` is looked up for each message, because tests and notebooks replace it.
        # A long number says no more than its ends.
        text = re.sub(r"\d{81,}", lambda number: shortened(number[0], quotes=False), self.format(record))
        print(visible(f"{name}{level}{text}"), file=sys.stderr, flush=True)


def configure_logging() -> None:
    """Show the messages of this project on standard error, and no retries of the hub. Further calls change nothing."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    for name in ("s1jax", "data_tools"):
        project = logging.getLogger(name)
        # Importing Orbax gives the root logger a handler, which would show each message again.
        project.propagate = False
        if not any(isinstance(handler, _StderrHandler) for handler in project.handlers):
            project.addHandler(_StderrHandler())
            project.setLevel(logging.INFO)


def run_command(main: Callable[[], None]) -> None:
    """Run a command. A UserError, an OSError, a library that cannot be imported or a full device becomes one message and exit code 1.

    `main` imports what it needs, because a library may refuse a variable of the environment while it is imported. With
    `S1JAX_TRACEBACK=1` in the environment, such an error keeps its traceback. Compiled programs are kept in the user's cache folder, or in
    JAX_COMPILATION_CACHE_DIR (empty: nowhere).
    """
    closed = open_standard_streams()
    configure_logging()
    if "stdout" in closed:
        logger.warning("standard output is closed: what this command prints there is lost")
    # JAX's default is three quarters of a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    _keep_compiled_programs()
    shows_traceback = bool(os.environ.get("S1JAX_TRACEBACK"))
    try:
        if not _has_working_directory():
            raise UserError("the working directory was deleted: change to another one")
        for name, default in _FIXED_VARIABLES.items():
            if os.environ.get(name, default).lower() not in (default, {"1": "true", "0": "false"}.get(default)):
                raise UserError(f"{name} would change the results, and no row would tell: unset it")
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of standard output is gone
        _discard_output()
        sys.exit(1)
    except KeyboardInterrupt:
        logger.info("interrupted")
        sys.exit(130)
    except (UserError, OSError) as error:
        if shows_traceback:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            logger.error("standard output cannot be written: %s", error.strerror)  # files are named by `writing`
            _discard_output()
        else:
            logger.error("%s", error)
        _exit_failed()
    except Exception as error:
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error) and not shows_traceback:
            reason = str(error).partition("RESOURCE_EXHAUSTED")[2].strip(": ").splitlines()[0].rstrip(".")
            logger.error("out of memory on a device: %s. %s", reason, OUT_OF_MEMORY_ADVICE)
        elif _is_without_devices(error) and not shows_traceback:
            logger.error("%s", _platform_advice(error))
        elif (library := _library_in_import(error)) and not shows_traceback:
            logger.error(
                "%s cannot be imported (%s): mend the environment variable or the installation",
                library,
                reason_of(error),
            )
        elif _process_of_several() is not None:
            logger.exception("%s", type(error).__name__)
        else:
            raise
        _exit_failed()


def _discard_output() -> None:
    """Let what waits for standard output go nowhere: Python's last flush must not fail too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _has_working_directory() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _library_in_import(error: Exception) -> str | None:
    """Return the library that was being imported when the error arose; None if none was."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    libraries = [frame.f_globals["__name__"].partition(".")[0] for frame in frames]
    return next(
        (name for name in libraries if name not in ("__main__", "s1jax", "data_tools", "configs", "launch")), None
    )


def _is_without_devices(error: Exception) -> bool:
    """Return whether JAX found no devices of the platform that it was asked for."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].name == "backends" and frames[-1].filename.endswith("xla_bridge.py")


def _platform_advice(error: Exception) -> str:
    extras = dict.fromkeys(("cuda", "gpu"), "cuda12] or [cuda13") | {"tpu": "tpu"}
    names = os.environ.get("JAX_PLATFORMS", "")
    wanted = next((extras[name] for name in names.split(",") if name in extras), None)
    advice = f"install the extra [{wanted}] of s1jax" if wanted else "choose cpu, cuda or tpu"
    reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
    return f"JAX has no devices of JAX_PLATFORMS={names}: {advice}{reason}"


def _keep_compiled_programs() -> None:
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(caches) / "s1jax" / "compiled")
    if "jax" in sys.modules:  # JAX reads the variable only when it is imported
        sys.modules["jax"].config.update("jax_compilation_cache_dir", directory)


def _process_of_several() -> int | None:
    """Return the index of this process in a run of several, None in a run of one or before `start_processes`."""
    jax = sys.modules.get("jax")
    distributed = getattr(jax, "distributed", None)  # missing while JAX is being imported
    if jax is None or distributed is None or not distributed.is_initialized():
        return None
    try:
        return jax.process_index() if jax.process_count() > 1 else None
    except Exception:  # this process has no devices
        return None


def _exit_failed() -> NoReturn:
    """Exit with code 1. One of several processes skips its exit handlers, in which JAX would wait for the others."""
    if _process_of_several() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)
