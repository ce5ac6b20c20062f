"""Models to disk: a Hugging Face directory, or a pre-sharded Orbax checkpoint, each with config.json and tokenizer files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from s1jax.checkpoint import huggingface, orbax
from s1jax.checkpoint.directories import new_directory
from s1jax.checkpoint.source import CONFIG_NAME, TOKENIZER_FILES, files_directory, read_config
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import is_first_process

MAX_SHARD_BYTES = 5_000_000_000


def save_hf(
    directory: str | Path,
    config: ModelConfig,
    params: Params,
    dtype: str | None,
    source_of_tokenizer: str | Path | None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Export parameters of either layout as a Hugging Face directory: safetensors, config.json and the source's tokenizer files.

    `dtype` None keeps each array's own. Parameters may be computed only when they are written (`lora.Merged`). Raises UserError where the
    directory exists and is not empty; `overwrite` replaces it if it is a checkpoint. Processes call it together; one tensor at a time is
    gathered.
    """
    with new_directory(directory, overwrite) as partial:
        stored = huggingface.export_weights(partial, config, params, dtype, max_shard_bytes)
        write_model_files(partial, config, source_of_tokenizer, stored)


def save_params(
    directory: str | Path, config: ModelConfig, params: Params, source_of_tokenizer: str | Path | None
) -> None:
    """Write stacked parameters as a pre-sharded checkpoint. Processes call it together.

    Raises UserError where the directory exists and is not empty.
    """
    with new_directory(directory) as partial:
        orbax.write_params(partial / "params", params)
        write_model_files(partial, config, source_of_tokenizer, params["norm"]["weight"].dtype.name)


def write_model_files(
    directory: str | Path, config: ModelConfig, tokenizer_source: str | Path | None, stored_dtype: str | None = None
) -> None:
    """Write config.json, and copy the tokenizer files of a source, beside weights of `stored_dtype`; a source may be `directory` itself.

    The source's config.json is kept with all its fields if it describes the same model. Process 0 writes.
    """
    directory = Path(directory)
    if not is_first_process():
        return
    hf = config.to_hf()
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_source is not None:
        source = files_directory(tokenizer_source)
        if (source / CONFIG_NAME).is_file():
            same, original = read_config(source, config.dtype)
            hf = original if same == config else hf
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and source.resolve() != directory.resolve():
                shutil.copyfile(source / name, directory / f".{name}.partial")
                os.replace(directory / f".{name}.partial", directory / name)
    if stored_dtype is not None:
        # transformers 5 says `dtype`, older ones and other readers `torch_dtype`.
        names = [name for name in ("dtype", "torch_dtype") if name in hf] or ["torch_dtype"]
        hf = hf | {name: stored_dtype for name in names}
    write_file(directory / CONFIG_NAME, json.dumps(hf, indent=2) + "\n")
