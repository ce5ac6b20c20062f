"""Benchmark of conversion: a model on a mesh -> both forms of a checkpoint on disk, and back, as `launch/benchmark.py convert` prints it.

Everything is written to a temporary directory (below `TMPDIR`). The disk needs room for both forms, and the devices for the weights twice.
Times are those of a first call, as in a command, so they include JAX's compilations. Files that were just written usually lie in the
system's cache. `plain_read_s`, the time to read the same files and do nothing with them, shows that effect.
"""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from s1jax.checkpoint.export import save_hf, save_params
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model.config import ModelConfig, config_of_size
from s1jax.model.qwen2 import Params, init_params
from s1jax.ops.bits import as_bits
from s1jax.perf.measure import timed
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

RULES = ShardingRules()


def figures(args: Any) -> Iterator[dict[str, Any]]:
    """Yield the figures for the command line `launch/benchmark.py convert`, whose parsed arguments are `args`."""
    mesh = make_mesh(MeshConfig(tensor=args.tensor))
    if args.model:
        config, params = load_model(resolve_source(args.model), mesh, RULES, "stacked", args.dtype, args.dtype)
    else:
        config = config_of_size(args.size, args.dtype)
        params = init_params(config, RULES, "stacked", mesh, seed=0, dtype=args.dtype)
    yield convert_figures(config, jax.block_until_ready(params), mesh)


def convert_figures(config: ModelConfig, params: Params, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Write stacked parameters in both forms and read them back. Return the seconds, and whether the bits are identical.

    Raises UserError if the directory for temporary files has no room for both forms.
    """
    num_bytes, free = sum(x.nbytes for x in jax.tree.leaves(params)), shutil.disk_usage(tempfile.gettempdir()).free
    if 2 * num_bytes > free:
        raise UserError(
            f"both forms of the model together need {2 * num_bytes / 1e9:.3g} GB, but {tempfile.gettempdir()} has {free / 1e9:.3g} left: "
            "set TMPDIR to a directory with more room"
        )
    measured: dict[str, Any] = dict(
        devices=mesh.size, directory=tempfile.gettempdir(), gb=round(num_bytes / 1e9, 3), identical=True
    )
    forms = {
        "hugging_face": partial(save_hf, config=config, params=params, dtype=None, files=None),
        "presharded": partial(save_params, config=config, params=params, files=None),
    }
    with tempfile.TemporaryDirectory() as directory:
        for name, write in forms.items():
            path = Path(directory) / name
            measured[f"{name}_write_s"], _ = timed(partial(write, path))
            measured[f"{name}_plain_read_s"], _ = timed(partial(_read_plainly, path))
            read = partial(load_model, resolve_source(path), mesh, RULES, "stacked", config.dtype, None)
            measured[f"{name}_read_s"], (_, back) = timed(read)
            measured["identical"] &= jax.tree.all(jax.tree.map(_same_bits, params, back))
            del back
    return {name: round(x, 3) if name.endswith("_s") else x for name, x in measured.items()}


def _read_plainly(directory: Path) -> None:
    """Read all files of a directory and do nothing with them."""
    buffer = bytearray(1 << 24)
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def _same_bits(a: jax.Array, b: jax.Array) -> bool:
    return a.dtype == b.dtype and bool((as_bits(a) == as_bits(b)).all())
