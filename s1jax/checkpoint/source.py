"""Checkpoints: where a model comes from and goes to, and the train state that a run is resumed from.

A *source* is what `--model` takes, and is told apart by what lies in it:

    Hugging Face     config.json, model.safetensors (or shards with an index), tokenizer files; a directory or a hub id
    pre-sharded      config.json, params/ (Orbax, stacked layers), tokenizer files: `save_params`, launch/convert.py
    training run     config.json, checkpoints/STEP/{state,metadata} (Orbax: params, opt_state, step; and JSON), tokenizer files:
                     the newest finished step, with optimizer state left unread; or name one step's directory itself

config.json is in Hugging Face's form everywhere, and the original's further fields are carried along. Only safetensors and Orbax arrays are
read: no pickle, no remote code. The translation of weights is in `hf_weights.py` (safetensors) and `orbax_params.py`.

Invariant: a destination appears whole or not at all (`new_directory`), and a half-written step is never taken for a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import jax

from s1jax.checkpoint import huggingface, orbax
from s1jax.checkpoint.orbax import find_fault, newest_step
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Layout, Params
from s1jax.model.storage import Storage, quantize_matrices
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules

Kind = Literal["hugging_face", "params", "state"]

CONFIG_NAME = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


def resolve_model(source: str | Path, weights: bool = True) -> Path:
    """Return the absolute directory of a source: itself, or a snapshot of a hub id (without weights if `weights` is False).

    Raises UserError where it is neither a directory nor to be had from the hub.
    """
    path = Path(source).expanduser()
    if not str(source).strip():
        raise UserError("the name of the model is empty: give a directory or a hub id")
    if path.is_dir():
        return Path(os.path.abspath(path))
    if path.exists():
        raise UserError(f"{source} is a file; a model is a directory or a hub id")
    if str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise UserError(f"no directory {source!s} (and it is no hub id, which looks like Qwen/Qwen2.5-0.5B-Instruct)")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [CONFIG_NAME, *TOKENIZER_FILES, *(["*.safetensors", huggingface.INDEX_NAME] if weights else [])]
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, ignore_patterns=["*/*"]))
    # The hub's errors have no common base, and those of its HTTP package vary with its version.
    except Exception as error:
        if isinstance(error, LocalEntryNotFoundError):
            fault = "could not be reached"
        elif isinstance(error, RepositoryNotFoundError):
            fault = "has no such model, or does not give it without a token that may read it"
        else:
            fault = f"does not give it ({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]})"
        raise UserError(
            f"there is no directory {source!s} in {Path.cwd()}, and the Hugging Face hub {fault}"
        ) from error


def find_weights(directory: Path) -> tuple[Kind, Path, Path]:
    """Return what a directory holds, where its weights lie, and where its config and tokenizer files lie.

    Raises UserError for a directory that is no checkpoint, saying what it lacks.
    """
    if (directory / huggingface.FILE_NAME).is_file() or (directory / huggingface.INDEX_NAME).is_file():
        return "hugging_face", directory, directory
    if (directory / "params").is_dir():
        return "params", directory / "params", directory
    if (directory / "checkpoints").is_dir():
        step = newest_step(directory / "checkpoints")
        if step is None:
            raise UserError(f"{directory} is a training run without a finished checkpoint")
        return "state", directory / "checkpoints" / str(step) / "state", directory
    if run := _run_of(directory):
        if fault := find_fault(directory):
            raise UserError(f"{directory} is not a finished checkpoint: {fault}")
        return "state", directory / "state", run
    lacks = f"it holds no {huggingface.FILE_NAME}, {huggingface.INDEX_NAME}, params/ or checkpoints/"
    pickled = next(directory.glob("*.bin"), None)
    raise UserError(
        f"{directory} is no checkpoint: {lacks}"
        + (f"; {pickled.name} is not read, only safetensors is" if pickled else "")
    )


def fingerprint(source: str | Path) -> str:
    """Return what tells a source's weights from others while reading little of them.

    For a hub id it is the commit; for a directory a hash of its config.json and, of every weight file, the name, the size and 16 blocks
    of 4 KiB spread evenly, of which any training changes some.
    """
    directory = resolve_model(source, weights=False)
    if not Path(source).expanduser().is_dir():
        return directory.name
    kind, weights, files = find_weights(directory)
    digest = hashlib.sha256((files / CONFIG_NAME).read_bytes())
    for path in sorted(weights.glob("*.safetensors" if kind == "hugging_face" else "**/*")):
        if path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(weights).as_posix()} {size}".encode())
            with path.open("rb") as file:
                for i in range(16):
                    file.seek(i * max(0, size - 4096) // 15)
                    digest.update(file.read(4096))
    return digest.hexdigest()[:12]


def tokenizer_fingerprint(source: str | Path) -> str:
    """Return a hash of the tokenizer files of a source."""
    directory = files_directory(source)
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            digest.update(name.encode() + (directory / name).read_bytes())
    return digest.hexdigest()[:12]


def read_config(source: str | Path, dtype: str = "bfloat16") -> tuple[ModelConfig, dict[str, Any]]:
    """Return the config of a source, without its weights, and the whole dict of its config.json. Raises UserError naming the file."""
    directory = files_directory(source)
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise UserError(f"{directory} is no checkpoint: it has no {CONFIG_NAME}")
    try:
        hf = json.loads(path.read_text("utf-8"))
        if not isinstance(hf, dict):
            raise UserError("it is no JSON object")
        return ModelConfig.from_hf(hf, dtype), hf
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error


def stored_dtype(directory: Path) -> str | None:
    """Return the dtype that a Hugging Face directory says its weights have; None where there is none, or its files are not whole."""
    if not (directory / CONFIG_NAME).is_file():
        return None
    try:
        hf, problems = read_config(directory)[1], huggingface.find_tensors(directory)[2]
    except (FileNotFoundError, ValueError):
        return None
    return None if problems else hf.get("dtype", hf.get("torch_dtype"))


def load_model(
    source: str | Path,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    layout: Layout,
    dtype: str = "bfloat16",
    param_dtype: str | None = "float32",
    store: Storage | None = None,
) -> tuple[ModelConfig, Params]:
    """Load a model onto a mesh: its config, which computes in `dtype`, and its parameters in `param_dtype` (None: as stored).

    `store` is what its matrices are stored as; then a Hugging Face source never lies on the devices whole as floats.

    `source` is a Hugging Face directory or hub id, a pre-sharded checkpoint, a training run or one step of it. Each process reads what its
    devices hold. Raises UserError for a source that is no such thing, or with everything that is wrong with its weights.
    """
    kind, weights, files = find_weights(resolve_model(source))
    config, _ = read_config(files, dtype)
    if kind == "hugging_face":
        return config, huggingface.import_weights(weights, config, mesh, rules, layout, param_dtype, store)
    params = orbax.read_params(weights, kind == "state", config, mesh, rules, layout, param_dtype)
    return config, params if store is None else quantize_matrices(params, store)


def load_tokenizer(source: str | Path):
    """Load the tokenizer of a source, as `load_model` takes it; code that may come with it is not run."""
    # Else transformers says at every start that there is no PyTorch here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    directory = files_directory(source)
    if not (directory / CONFIG_NAME).is_file():
        raise UserError(f"{directory} is no checkpoint: it has no {CONFIG_NAME}")
    if not has_tokenizer(directory):
        raise UserError(f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json is there")
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # `tokenizers` raises bare Exceptions
        read_config(directory)  # which is read along with the tokenizer: what is wrong with it is told as such
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot load the tokenizer of {directory}: its files are damaged ({reason})") from error


def has_tokenizer(directory: Path) -> bool:
    """Return whether the files of a tokenizer lie in a directory."""
    return (directory / "tokenizer.json").is_file() or (directory / "vocab.json").is_file()


def files_directory(source: str | Path) -> Path:
    """Return the directory of a source's config and tokenizer files, without its weights."""
    directory = resolve_model(source, weights=False)
    return _run_of(directory) or directory


def _run_of(directory: Path) -> Path | None:
    """Return the training run that a directory is a step's directory of, None if it is none."""
    step = directory.resolve()
    return step.parents[1] if directory.name.isdecimal() and step.parent.name == "checkpoints" else None
