"""A checkpoint in one form -> the same model in the other: Hugging Face <-> our own (pre-sharded Orbax, training run, step of one)."""

import logging
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from s1jax.checkpoint.directories import check_destination
from s1jax.checkpoint.export import save_hf, save_params
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, OutputPath
from s1jax.runtime.lock import Lock
from s1jax.runtime.processes import check_same, everywhere, from_first_process, start_processes
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertConfig:
    """The source and the destination of a conversion."""

    src: Annotated[tyro.conf.Positional[InputPath], tyro.conf.arg(metavar="SRC")]
    """Hugging Face directory, hub id (ID@REVISION: a branch, tag or commit), pre-sharded checkpoint, training run, or a step of one."""
    dst: Annotated[tyro.conf.Positional[OutputPath], tyro.conf.arg(metavar="DST")]
    """Directory to write."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the written weights; default: the dtype of SRC."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Devices that hold the weights during the conversion."""


def convert(config: ConvertConfig) -> None:
    """Load the source, and write the destination in the other form.

    Raises UserError if the source is no checkpoint, or if the destination is not empty or lies in the source.
    """
    start_processes()
    check_same(config, "config")
    destination = from_first_process(lambda: check_destination(config.dst))
    source = everywhere(lambda: resolve_source(config.src))
    check_same(everywhere(lambda: source.fingerprint), "model")
    if destination.resolve().is_relative_to(source.directory.resolve()):
        raise UserError(f"{config.dst} lies in {config.src}, the source: give a directory outside it")
    mesh = make_mesh(config.mesh)
    dtype = config.dtype if source.kind == "hugging_face" else None
    with Lock(destination):
        model_config, params = load_model(source, mesh, ShardingRules(), "stacked", param_dtype=dtype)
        if source.kind == "hugging_face":
            save_params(config.dst, model_config, params, source.files)
            form = "pre-sharded Orbax"
        else:
            save_hf(config.dst, model_config, params, config.dtype, source.files)
            form = "Hugging Face"
    logger.info("wrote %s (%s)", config.dst, form)
    if not source.has_tokenizer:
        logger.warning("%s has no tokenizer, so %s has none and cannot answer questions", config.src, config.dst)
