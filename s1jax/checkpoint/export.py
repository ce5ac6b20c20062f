"""Writes models: a Hugging Face directory or a pre-sharded Orbax checkpoint, each with config.json and tokenizer files."""

import json
from pathlib import Path

from s1jax.checkpoint import huggingface, orbax
from s1jax.checkpoint.directories import new_directory
from s1jax.checkpoint.peft import Adapter, write_adapter
from s1jax.checkpoint.source import CONFIG_NAME, TOKENIZER_FILES, read_config
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import is_first_process

ADAPTER_FOLDER = "adapter"
# Fields of a config.json that say how another tool stored the weights it was written with.
STALE_FIELDS = (
    "quantization_config",
    "quantization",
    "compression_config",
    "_name_or_path",
    "_commit_hash",
    "transformers_version",
)


def save_hf(
    directory: str | Path,
    config: ModelConfig,
    params: Params,
    dtype: str | None,
    files: Path | None,
    overwrite: bool = False,
    adapter: Adapter | None = None,
) -> None:
    """Export parameters of either layout as a Hugging Face directory: safetensors, config.json and tokenizer files.

    `dtype` None keeps each array's own dtype. The tokenizer files are copied from `files`, if given (`Source.files`). `overwrite` replaces
    a directory that holds a checkpoint. An `adapter` is written into the folder adapter/ of the directory. All processes call this
    together, and gather one tensor at a time. Parameters may be computed when they are written (`lora.Merged`). Raises UserError if the
    directory is not empty.
    """
    with new_directory(directory, overwrite) as partial:
        stored = huggingface.export_weights(partial, config, params, dtype)
        write_model_files(partial, config, files, stored)
        if adapter is not None:
            write_adapter(partial / ADAPTER_FOLDER, adapter)


def save_params(directory: str | Path, config: ModelConfig, params: Params, files: Path | None) -> None:
    """Write stacked parameters as a pre-sharded checkpoint, with tokenizer files and errors as in `save_hf`. All processes call this."""
    with new_directory(directory) as partial:
        orbax.write_params(partial / "params", params)
        write_model_files(partial, config, files, params["norm"]["weight"].dtype.name)


def write_model_files(
    directory: Path, config: ModelConfig, files: Path | None, stored_dtype: str | None = None
) -> None:
    """Write config.json and copy the tokenizer files of the directory `files`, which may be `directory` itself. Process 0 writes.

    If the config.json in `files` describes the same model, its fields are kept, except STALE_FIELDS. `stored_dtype` is the dtype of the
    weights in `directory`, which config.json then names.
    """
    if not is_first_process():
        return
    hf = config.to_hf()
    directory.mkdir(parents=True, exist_ok=True)
    if files is not None:
        if (files / CONFIG_NAME).is_file():
            original = read_config(files)
            if ModelConfig.from_hf(original, config.dtype) == config:
                hf = {name: value for name, value in original.items() if name not in STALE_FIELDS}
        for name in TOKENIZER_FILES:
            if (files / name).is_file() and files.resolve() != directory.resolve():
                write_file(directory / name, (files / name).read_bytes())
    if stored_dtype is not None:
        # transformers 5 reads `dtype`. Older versions and other readers read `torch_dtype`.
        names = [name for name in ("dtype", "torch_dtype") if name in hf] or ["torch_dtype"]
        hf = hf | {name: stored_dtype for name in names}
    write_file(directory / CONFIG_NAME, json.dumps(hf, indent=2) + "\n")
