"""Convert a checkpoint: Hugging Face -> pre-sharded Orbax, or one of our own (pre-sharded, training run, step) -> Hugging Face.

The direction is read from SRC, a directory or a hub id. DST is made, and must not hold anything yet. Every bit of the weights is kept
unless --dtype asks for another dtype. Converting first is never needed: every command reads both forms directly.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from s1jax.checkpoint.directories import check_destination
from s1jax.checkpoint.export import save_hf, save_params
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.runtime.command import run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and where to."""

    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """Hugging Face directory, hub id (ID@REVISION: a branch, tag or commit), pre-sharded checkpoint, training run, or a step of one."""
    dst: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DST")]
    """Directory to make."""
    dtype: Annotated[str | None, tyro.conf.arg(metavar="{" + ",".join(DTYPES) + "}")] = None
    """Dtype of the written weights; by default that of SRC."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices that hold the weights in between."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")


def main() -> None:
    """Load SRC as it is, write DST in the other form."""
    config = parse_arguments(__doc__ or "", ConvertConfig)
    destination = check_destination(config.dst)
    source = resolve_source(config.src)
    if destination.resolve().is_relative_to(source.directory.resolve()):
        raise UserError(f"{config.dst} lies in {config.src}, which is to be read: give a directory outside")
    mesh = make_mesh(config.mesh)
    dtype = config.dtype if source.kind == "hugging_face" else None
    model_config, params = load_model(source, mesh, ShardingRules(), "stacked", param_dtype=dtype)
    if source.kind == "hugging_face":
        save_params(config.dst, model_config, params, source.files)
        form = "pre-sharded Orbax"
    else:
        save_hf(config.dst, model_config, params, config.dtype, source.files)
        form = "Hugging Face"
    print(f"wrote {config.dst} ({form})", file=sys.stderr)
    if not source.has_tokenizer:
        print(
            f"warning: {config.src} has no tokenizer, so {config.dst} has none: nothing can be asked of it",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_command(main)
