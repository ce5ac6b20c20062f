"""Parameters in Orbax directories: written in small chunks, read back onto any mesh in either layout; and which are finished.

Parameters lie there with stacked layers, alone (a pre-sharded checkpoint) or as the `params` of a train state, whose optimizer state is
then left unread. The sizes of all files are recorded beside them, so that a truncated or lost file is found before anything is read.
Invariant: names and shapes are compared with the model's before anything is read, and all differences are raised together.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from s1jax.config import listed, write_file
from s1jax.model import Layout, Params, abstract_params, unstack
from s1jax.model_config import ModelConfig
from s1jax.sharding import ShardingRules

CHUNK_BYTES = 64 * 2**20
FILES_NAME = "s1jax_files.json"


def record_files(directory: Path) -> None:
    """Write the sizes of all files below a directory into it, once they are final. Process 0 calls it."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != FILES_NAME)
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}
    write_file(directory / FILES_NAME, json.dumps(sizes, indent=0))


def find_damage(directory: Path) -> str | None:
    """Return the first file of a directory that is not of its recorded size; None without any, or without a record."""
    record = directory / FILES_NAME
    sizes: dict[str, int] = json.loads(record.read_text()) if record.is_file() else {}
    for name, size in sizes.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            return f"{name} is absent" if found is None else f"{name} has {found} bytes, not {size}"
    return None


def is_finished(step_directory: Path) -> bool:
    """Return whether a step's directory is one that Orbax committed, with its parts there and whole."""
    try:
        committed = json.loads((step_directory / "_CHECKPOINT_METADATA").read_text())["commit_timestamp_nsecs"]
        read_metadata(step_directory)
        json.loads((step_directory / "state" / "_METADATA").read_text())
        return bool(committed) and find_damage(step_directory) is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finished_steps(directory: Path) -> list[int]:
    """Return the steps of a directory of checkpoints, in order; unfinished and damaged ones are left out."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.name.isdecimal()]
    return sorted(int(name) for name in names if name == str(int(name)) and is_finished(directory / name))


def read_metadata(step_directory: Path) -> dict[str, Any]:
    """Return the JSON object that was saved with a step."""
    return json.loads((step_directory / "metadata" / "metadata").read_text())


def write_params(directory: Path, params: Params) -> None:
    """Write stacked parameters, in chunks small enough for any later mesh to read just its own. Processes call it together."""
    import orbax.checkpoint as ocp

    save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), params, save_args=save_args)
        checkpointer.wait_until_finished()
    if jax.process_index() == 0:
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

    Raises ValueError for a damaged directory, or with every difference from the model of `config`.
    """
    import orbax.checkpoint as ocp

    directory = directory.absolute()  # Orbax takes no other
    with named_errors(directory):
        if damage := find_damage(directory):
            raise ValueError(damage)
        stored = ocp.PyTreeCheckpointHandler().metadata(directory).tree
    item = _target(directory, stored.get("params", {}) if is_train_state else stored, config, mesh, rules, param_dtype)
    tree = {"params": item} if is_train_state else item
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True)
    with named_errors(directory), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(directory, args=args)
    params = restored["params"] if is_train_state else restored
    if layout == "stacked":
        return params
    return unstack(params, config.num_layers, abstract_params(config, rules, "per_layer", mesh), donate=True)


def _target(
    directory: Path,
    stored: Params,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    param_dtype: str | None,
) -> Params:
    """Return the tree to restore, after comparing the stored one with the model's."""
    target = abstract_params(config, rules, "stacked", mesh)
    wanted, found = _by_name(target), _by_name(stored)
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {list(found[name].shape)}, the config asks for {list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in found and tuple(found[name].shape) != leaf.shape
    ]
    if problems:
        raise ValueError(f"cannot load {directory}: {len(problems)} problem(s){listed(problems)}")

    def with_dtype(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, param_dtype or found[_name(path)].dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(with_dtype, target)


def _by_name(tree: Params) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


@contextlib.contextmanager
def named_errors(directory: Path, hint: str = "") -> Iterator[None]:
    """Turn whatever Orbax raises for a damaged or foreign checkpoint into one ValueError that names it."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot read checkpoint {directory} ({type(error).__name__}: {reason}){hint}") from error
