"""Models in forms that are not read: what their files and the names of their tensors tell -> a message with the cause and the way out."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from s1jax.runtime.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
FLOAT_MODEL = "give the float model that it was made from"
# The first pattern that fits a file decides.
FORMS = {
    ".cache/huggingface/download/*.incomplete": ("an incomplete download", "download it again"),
    "adapter_config.json": (
        "a LoRA adapter without its base model",
        "merge it into the base (merge_and_unload of PEFT) and give the result",
    ),
    "*.gguf": ("a GGUF model", FLOAT_MODEL),
    "*.onnx": ("an ONNX model", FLOAT_MODEL),
    "onnx/*.onnx": ("an ONNX model", FLOAT_MODEL),
    "*.safetensors": (
        "safetensors of another name or without their index",
        "name one file model.safetensors, or add the index model.safetensors.index.json of several",
    ),
    "*.h5": ("TensorFlow weights", "save them as safetensors"),
    "*.msgpack": ("Flax weights", "save them as safetensors"),
    "snapshots/*": ("snapshots of the hub's cache", "give one of them, or the hub id"),
    "checkpoint-*": ("checkpoints of another trainer", "give one of them"),
    "*/*.distcp": ("a distributed PyTorch checkpoint", "save its weights as safetensors"),
    **{
        f"*.{suffix}": ("pickled weights, which are not read because they may run code", "save them as safetensors")
        for suffix in ("bin", "pt", "pth", "ckpt")
    },
}
# The first pattern that fits a tensor's name decides.
TENSORS = {
    r"(^|\.)lora_\w+\.|\.base_layer\.": (
        "LoRA adapters that are not merged",
        "merge them into the base (merge_and_unload of PEFT) and give the result",
    ),
    r"\.(qweight|qzeros|g_idx|scales|biases|SCB|(nested_)?(absmax|quant_map)|quant_state\..*|weight_format|weight_packed|weight_shape|"
    r"weight_zero_point|weight_scales?(_inv|_2)?|input_scale|codes|codebooks|_data|_scale)$": (
        "quantised weights{by}",
        FLOAT_MODEL,
    ),
    r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.": (
        "the names of a wrapped model (torch.compile, DDP or FSDP)",
        "save the model inside the wrapper",
    ),
    r"^(score|classifier|v_head|summary)\.": ("the head of a classifier or a reward model", "give a language model"),
    # Any other prefix; the whole name is expected.
    r"^(?!model\.embed_tokens\.).*embed_tokens\.weight$": (
        "tensors whose names do not begin as in model.embed_tokens.weight",
        "rename them, or save the whole language model",
    ),
}


def check_pointers(directory: Path, patterns: Iterable[str]) -> None:
    """Raise UserError if Git LFS left pointers in place of files of these names."""
    files = [path for pattern in patterns for path in sorted(directory.glob(pattern)) if path.is_file()]
    small = [path for path in files if path.stat().st_size < MAX_POINTER_BYTES]
    if pointers := [path.name for path in small if path.read_bytes().startswith(LFS_POINTER)]:
        raise UserError(
            f"{directory} holds a Git LFS pointer in place of {', '.join(pointers)}: run `git lfs pull` there, or download the files"
        )


def form_of_files(directory: Path) -> str | None:
    """Return what a directory without a checkpoint holds instead, and the way out; None if no file tells."""
    for pattern, (form, advice) in FORMS.items():
        if found := min(directory.glob(pattern), default=None):
            return f"it holds {form} ({found.relative_to(directory)}): {advice}"
    return None


def form_of_tensors(directory: Path, names: Iterable[str]) -> str | None:
    """Return what a directory's tensors are instead of the weights of a float model, and the way out; None if no name tells."""
    names = sorted(names)
    for pattern, (form, advice) in TENSORS.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"it holds {form.format(by=_quantizer(directory))} ({found}): {advice}"
    return None


def _quantizer(directory: Path) -> str:
    settings = json.loads((directory / "config.json").read_text("utf-8")).get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return f" by {method.upper()}" if isinstance(method, str) else ""
