"""Parameters in Orbax directories: writing them, reading them onto any mesh, and finding damage.

The parameters have stacked layers. They lie alone in a directory (a pre-sharded checkpoint), or as the `params` of a train state. A file
beside them records the sizes of all files, so that a truncated or lost file is found before anything is read.

Invariant: names and shapes are compared with the model's before anything is read, and one error lists all differences.
"""

import contextlib
import errno
import functools
import json
import logging
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from s1jax.checkpoint import huggingface
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Layout, Params, abstract_params, unstack
from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.sharding import ShardingRules

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 * 2**20
FILES_NAME = "s1jax_files.json"
STEP_METADATA_NAME = "_CHECKPOINT_METADATA"
EVAL_LOSS = Path("metrics", "metrics")
# In a run of several processes, Orbax lets each write into its own folder.
FILE_OF_ANOTHER_PROCESS = re.compile(r"/ocdbt\.process_[1-9]")


def record_files(directory: Path, checksums: bool = False) -> None:
    """Record the sizes of all files below a directory, in a file there. Process 0 calls this when the files are final.

    With `checksums`, the CRC-32 of each file that process 0 wrote is recorded too. A single process writes all files.
    """
    # Orbax changes its metadata when it commits, and an evaluation may write its loss later.
    changing = {FILES_NAME, STEP_METADATA_NAME, EVAL_LOSS.name}
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in changing)
    record: dict[str, Any] = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
    if checksums:
        own = [name for name in record if not FILE_OF_ANOTHER_PROCESS.search(name)]
        for name, checksum in _checksums(directory, own).items():
            record[name] = [record[name], checksum]
    write_file(directory / FILES_NAME, json.dumps(record, indent=0))


def find_damage(directory: Path, checksums: bool = False) -> str | None:
    """Return what is wrong with the first file that differs from the record of `record_files`, or None if no file differs.

    Without a record no file differs. With `checksums`, files with a recorded checksum are read whole to compare it.
    """
    record = directory / FILES_NAME
    files: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    files.pop(EVAL_LOSS.as_posix(), None)  # older records contain it
    with_checksum = {name: value[1] for name, value in files.items() if isinstance(value, list)}
    for name, value in files.items():
        path, size = directory / name, value[0] if name in with_checksum else value
        if not path.is_file():
            return f"{name} is absent"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    if checksums:
        for name, checksum in _checksums(directory, list(with_checksum)).items():
            if checksum != with_checksum[name]:
                return f"the content of {name} is not what was written"
    return None


def _checksums(directory: Path, names: list[str]) -> dict[str, int]:
    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(lambda name: _checksum(directory / name), names), strict=True))


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def find_fault(step_directory: Path) -> str | None:
    """Return why a step's directory is not a finished checkpoint (committed, with all parts, in files of the recorded sizes), or None."""
    try:
        if not json.loads((step_directory / STEP_METADATA_NAME).read_text())["commit_timestamp_nsecs"]:
            return "it was not committed"
        read_metadata(step_directory)
        read_eval_loss(step_directory)
        json.loads((step_directory / "state" / "_METADATA").read_text())
        return find_damage(step_directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return reason_of(error)


def step_directories(directory: Path) -> list[Path]:
    """Return the directories of all steps in a directory of checkpoints, in order. Damaged steps are included."""
    return sorted((path for path in directory.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))


def finished_steps(directory: Path) -> list[int]:
    """Return the finished steps in a directory of checkpoints, in order."""
    return [int(path.name) for path in step_directories(directory) if find_fault(path) is None]


def newest_step(directory: Path) -> int | None:
    """Return the newest finished step in a directory of checkpoints, or None. A warning names each newer step, which is skipped."""
    for path in reversed(step_directories(directory)):
        fault = find_fault(path)
        if fault is None:
            return int(path.name)
        if is_first_process():
            logger.warning("%s is not a finished checkpoint and is skipped: %s", path, fault)
    return None


def read_metadata(step_directory: Path) -> dict[str, Any]:
    """Return the JSON object that was saved with a step."""
    return json.loads((step_directory / "metadata" / "metadata").read_text())


def read_eval_loss(step_directory: Path) -> float | None:
    """Return the evaluation loss of a step, or None if it has none."""
    path = step_directory / EVAL_LOSS
    return json.loads(path.read_text()).get("eval_loss") if path.is_file() else None


def write_params(directory: Path, params: Params) -> None:
    """Write stacked parameters in chunks so small that any later mesh can read only its own part. All processes call this together.

    Raises OSError if they cannot be written, as on a full disk.
    """
    import orbax.checkpoint as ocp

    quieten()
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory.absolute(), params, save_args=save_args)
            checkpointer.wait_until_finished()
    except Exception as error:
        raise OSError(errno.EIO, describe_write_error(error, directory.parent)) from error
    if is_first_process():
        record_files(directory)


def read_params(
    directory: Path,
    is_train_state: bool,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    layout: Layout,
    param_dtype: str | None,
) -> Params:
    """Read parameters onto a mesh, in `param_dtype` (None: as stored).

    From a train state (`is_train_state`), only the parameters are read. Raises UserError if the directory is damaged, or with every
    difference from the model of `config`.
    """
    import orbax.checkpoint as ocp

    directory = directory.absolute()  # Orbax accepts only absolute paths
    with named_errors(directory):
        if damage := find_damage(directory):
            raise UserError(damage)
        stored = ocp.PyTreeCheckpointHandler().metadata(directory).tree
    found = stored.get("params", {}) if is_train_state else stored
    target = abstract_params(config, rules, "stacked", mesh)
    if any(name.endswith(".lora_a") for name in _shapes(found)):
        raise UserError(
            f"{directory} holds only LoRA adapters: use the run's export in its hf/, where they are merged into the model"
        )
    huggingface.raise_problems(directory, huggingface.find_differences(_shapes(found), _shapes(target)))

    def wanted(leaf: jax.ShapeDtypeStruct, held: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, param_dtype or held.dtype, sharding=leaf.sharding)

    item = jax.tree.map(wanted, target, found)
    tree = {"params": item} if is_train_state else item
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
    with named_errors(directory), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(directory, args=args)
    params = restored["params"] if is_train_state else restored
    if layout == "stacked":
        return params
    return unstack(params, config.num_layers, abstract_params(config, rules, "per_layer", mesh), donate=True)


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep=".").items()}


@contextlib.contextmanager
def named_errors(directory: Path, hint: str = "") -> Iterator[None]:
    """Turn any error that Orbax raises for a damaged or foreign checkpoint into one UserError that names it, followed by `hint`."""
    try:
        yield
    except Exception as error:
        raise UserError(f"cannot read checkpoint {directory} ({reason_of(error)}){hint}") from error


def describe_write_error(error: Exception, directory: Path) -> str:
    """Return why Orbax could not write below a directory, with the room on its disk."""
    reason = reason_of(error)
    if "No space left on device" in str(error):
        reason = "the disk is full of bytes or of files"
    return f"{reason} ({shutil.disk_usage(directory).free / 1e9:.2f} GB were free)"


@functools.cache
def quieten() -> None:
    """Suppress what Orbax and asyncio print about errors that are also raised. Otherwise one full disk would fill pages."""

    def is_not_raised_too(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in Path(record.pathname).parts

    def report(unraisable: Any, default: Callable[[Any], object] = sys.unraisablehook) -> None:
        # Orbax closes its event loop after the first array's error, so TensorStore cannot deliver the errors of other arrays, and the
        # coroutines that wait for them end with the interpreter.
        is_closed = repr(unraisable.exc_value) == "RuntimeError('Event loop is closed')"
        if not (is_closed or "write_fragment" in repr(unraisable.object)):
            default(unraisable)

    logging.getLogger("absl").addFilter(is_not_raised_too)
    # Orbax waits only for the first failing task of its event loop, so asyncio would report the errors of the others.
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    sys.unraisablehook = report
