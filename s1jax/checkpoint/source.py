"""Where a model comes from. A command resolves the name of its model once, and everything else reads the `Source` that results.

A name is a directory or a hub id. The content of the directory decides what kind of source it is:

    hugging_face   model.safetensors (or shards with an index). A hub id is always of this kind.
    params         params/ (Orbax, stacked layers), written by `save_params` and launch/convert.py.
    state          checkpoints/STEP/{state,metadata} (Orbax and JSON). The directory of a training run stands for its newest finished
                   step. The directory of one step also works. The optimizer state is not read.

Every kind has Hugging Face's config.json and tokenizer files. Only safetensors and Orbax arrays are read: no pickle, no remote code.

Invariants: whatever is downloaded of a hub id is of one commit. A half-written step is never taken for a checkpoint.
"""

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import jax

from s1jax.checkpoint import huggingface, orbax
from s1jax.checkpoint.foreign import check_pointers, form_of_files
from s1jax.model.config import ModelConfig, unread_fields
from s1jax.model.qwen2 import Layout, Params
from s1jax.model.storage import Storage, quantize_matrices
from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.sharding import ShardingRules

logger = logging.getLogger(__name__)

Kind = Literal["hugging_face", "params", "state", "config"]

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
WEIGHT_FILES = ("*.safetensors", huggingface.INDEX_NAME)


@dataclass(frozen=True)
class Source:
    """A model on disk, as `resolve_source` found it."""

    name: str
    """The directory or hub id, as the user gave it."""
    kind: Kind
    """What the weights are stored as. A directory without weights is of kind "config"."""
    revision: str | None
    """The commit of a hub id; None for a directory."""
    directory: Path
    """The absolute directory, or the hub's snapshot of the commit."""
    weights: Path | None
    """The directory of the weights; None if they are not there, or not downloaded yet."""
    files: Path
    """The directory of config.json and the tokenizer files."""
    config: dict[str, Any]
    """The content of config.json."""

    def model_config(self, dtype: str = "bfloat16") -> ModelConfig:
        """Return the config of the model, which computes in `dtype`. Raises UserError naming the file and the wrong fields."""
        try:
            return ModelConfig.from_hf(self.config, dtype)
        except ValueError as error:
            raise UserError(f"{self.files / CONFIG_NAME}: {error}") from error

    def with_weights(self) -> "Source":
        """Return this source with its weights, downloaded if it is a hub id. Raises UserError if there are none."""
        if self.weights is not None:
            return self
        directory = _download(self.name, self.revision, weights=True) if self.revision else self.directory
        return _describe(self.name, directory, self.revision, weights=True)

    @cached_property
    def fingerprint(self) -> str:
        """An identifier of the weights and the config: the commit of a hub id, or 12 hex digits for a directory.

        The digits are a hash of config.json and of the name, the size and 16 evenly spread blocks (4 KiB) of each weight file. Any training
        changes some of them, and little has to be read. Raises UserError if a directory has no weights.
        """
        if self.revision is not None:
            return self.revision
        source = self.with_weights()
        assert source.weights is not None
        digest = hashlib.sha256((source.files / CONFIG_NAME).read_bytes())
        for path in sorted(source.weights.glob("*.safetensors" if source.kind == "hugging_face" else "**/*")):
            if path.is_file():
                size = path.stat().st_size
                digest.update(f"{path.relative_to(source.weights).as_posix()} {size}".encode())
                with path.open("rb") as file:
                    for i in range(16):
                        file.seek(i * max(0, size - 4096) // 15)
                        digest.update(file.read(4096))
        return digest.hexdigest()[:12]

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """12 hex digits: a hash of the tokenizer files."""
        digest = hashlib.sha256()
        for name in TOKENIZER_FILES:
            if (self.files / name).is_file():
                digest.update(name.encode() + (self.files / name).read_bytes())
        return digest.hexdigest()[:12]

    @property
    def has_tokenizer(self) -> bool:
        """Whether the source has the files of a tokenizer."""
        return (self.files / "tokenizer.json").is_file() or (self.files / "vocab.json").is_file()


def resolve_source(name: str | Path, weights: bool = True) -> Source:
    """Find the model of a name: a directory, a hub id, or NAME@REVISION, where the revision is a branch, tag or commit of the hub id.

    Without `weights`, the weights may be absent, and those of a hub id are downloaded later, by `Source.with_weights`. Call this once per
    command: the commit of a branch may change between two calls.
    Raises UserError if there is neither such a directory nor such a hub id, or if the directory is not a checkpoint.
    """
    path = Path(name).expanduser()
    if not str(name).strip():
        raise UserError("the name of the model is empty: give a directory or a hub id")
    directory, commit = Path(os.path.abspath(path)), None
    if not path.is_dir():
        if path.exists():
            raise UserError(f"{name} is a file; a model is a directory or a hub id")
        hub_id, at, revision = str(name).partition("@")
        if hub_id.startswith((".", "/", "~")) or hub_id.count("/") > 1:
            raise UserError(f"there is no directory {name}, and a hub id looks like Qwen/Qwen2.5-0.5B-Instruct")
        if at and not (hub_id and revision):
            raise UserError(f"the name {name} is incomplete: it must be HUB_ID@REVISION, or a hub id without @")
        directory = _download(str(name), revision or None, weights)
        commit = directory.name
    source = _describe(str(name), directory, commit, weights)
    if unread := unread_fields(source.config):
        logger.info("%s has fields that are not read: %s", source.files / CONFIG_NAME, ", ".join(unread))
    return source


def _download(name: str, revision: str | None, weights: bool) -> Path:
    """Return the hub's snapshot of a hub id, in a directory named by its commit. Raises UserError with the hub's own message."""
    patterns = [CONFIG_NAME, *TOKENIZER_FILES, *(WEIGHT_FILES if weights else ()), "adapter_config.json"]
    wanted: dict[str, Any] = dict(revision=revision, allow_patterns=patterns, ignore_patterns="*/*")
    try:
        # The attribute is looked up at each call, so that a test can replace it.
        return Path(huggingface_hub.snapshot_download(name.partition("@")[0], **wanted))
    # The hub's errors have no common base class, and those of its HTTP package vary with its version.
    except Exception as error:
        raise UserError(
            f"there is no directory {name} in {Path.cwd()}, and the Hugging Face hub does not give it ({reason_of(error)})"
        ) from error


def _describe(name: str, directory: Path, revision: str | None, weights: bool) -> Source:
    """Return the source that lies in a directory. Raises UserError if it is not a checkpoint, or has no weights and `weights` is True."""
    kind: Kind = "config" if revision is None else "hugging_face"
    found, files = None, _run_of(directory) or directory
    check_pointers(files, (CONFIG_NAME, *TOKENIZER_FILES, *WEIGHT_FILES))
    # The shards of a snapshot without weights may be there from an earlier download, but perhaps not all of them.
    if weights:
        kind, found = _find_weights(directory)
    elif revision is None:
        with contextlib.suppress(UserError):
            kind, found = _find_weights(directory)
    return Source(name, kind, revision, directory, found, files, read_config(files))


def _find_weights(directory: Path) -> tuple[Kind, Path]:
    """Return what a directory holds, and the directory of its weights. Raises UserError that says what the directory lacks."""
    if (directory / huggingface.FILE_NAME).is_file() or (directory / huggingface.INDEX_NAME).is_file():
        return "hugging_face", directory
    if (directory / "params").is_dir():
        return "params", directory / "params"
    if (directory / "checkpoints").is_dir():
        step = orbax.newest_step(directory / "checkpoints")
        if step is None:
            raise UserError(f"{directory} is a training run without a finished checkpoint")
        return "state", directory / "checkpoints" / str(step) / "state"
    if _run_of(directory):
        if fault := orbax.find_fault(directory):
            raise UserError(f"{directory} is not a finished checkpoint: {fault}")
        return "state", directory / "state"
    lacks = f"it has no {huggingface.FILE_NAME}, {huggingface.INDEX_NAME}, params/ or checkpoints/"
    raise UserError(f"{directory} is not a checkpoint: {form_of_files(directory) or lacks}")


def _run_of(directory: Path) -> Path | None:
    """Return the training run that a step's directory belongs to, or None if the directory is not that of a step."""
    step = directory.resolve()
    return step.parents[1] if directory.name.isdecimal() and step.parent.name == "checkpoints" else None


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of a directory's config.json. Raises UserError naming the file if it is absent or not a JSON object."""
    path = directory / CONFIG_NAME
    if not path.is_file():
        form = None if (directory / huggingface.FILE_NAME).is_file() else form_of_files(directory)
        raise UserError(f"{directory} is not a checkpoint: {form or f'it has no {CONFIG_NAME}'}")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file that holds a JSON object. Raises UserError naming the file if it does not."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: it is not a JSON object")
    return value


def stored_dtype(directory: Path) -> str | None:
    """Return the dtype that the config of a Hugging Face directory gives for its weights, or None if it is absent or damaged."""
    try:
        source = _describe(str(directory), directory, None, weights=True)
        source.model_config()
        huggingface.find_tensors(directory)
    except (FileNotFoundError, UserError):
        return None
    return source.config.get("dtype", source.config.get("torch_dtype"))


def load_model(
    source: Source,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    layout: Layout,
    dtype: str = "bfloat16",
    param_dtype: str | None = "float32",
    store: Storage | None = None,
) -> tuple[ModelConfig, Params]:
    """Load a model onto a mesh. Return its config, which computes in `dtype`, and its parameters in `param_dtype` (None: as stored).

    `store` says how to store the matrices; None keeps floats. A Hugging Face source is quantized while it is read, so its float weights
    never fill the devices. Each process reads what its devices hold. Raises UserError with everything that is wrong with the weights.
    """
    source = source.with_weights()
    assert source.weights is not None
    config = source.model_config(dtype)
    if source.kind == "hugging_face":
        return config, huggingface.import_weights(source.weights, config, mesh, rules, layout, param_dtype, store)
    params = orbax.read_params(source.weights, source.kind == "state", config, mesh, rules, layout, param_dtype)
    return config, params if store is None else quantize_matrices(params, store)


def load_tokenizer(source: Source):
    """Load the tokenizer of a source. Code that may come with it is not run.

    Raises UserError if it is absent or damaged, or if it has a token for which the model has no embedding.
    """
    # Otherwise transformers says at every start that there is no PyTorch here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    if not source.has_tokenizer:
        raise UserError(f"{source.files} has no tokenizer: it has neither tokenizer.json nor vocab.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.files, trust_remote_code=False, local_files_only=True)
        token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    except Exception as error:  # `tokenizers` raises bare Exceptions
        source.model_config()  # transformers reads the config too, so its error may be the config's
        for name in TOKENIZER_FILES:
            if name.endswith(".json") and (source.files / name).is_file():
                _read_json(source.files / name)
        raise UserError(
            f"cannot load the tokenizer of {source.files}: its files or its config.json are damaged ({reason_of(error)})"
        ) from error
    if largest >= (vocab_size := source.model_config().vocab_size):
        raise UserError(
            f"the tokenizer of {source.files} has token {token!r} with id {largest}, but the model's vocab_size is {vocab_size}: "
            "use the tokenizer that belongs to the model"
        )
    return tokenizer
