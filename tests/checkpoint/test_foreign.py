"""Models in forms that are not read: one line names the form and the way out."""

import json

import numpy as np
import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.runtime.errors import UserError
from tests.support.checkpoints import TINY, load, tiny_tensors, write_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3503736\n"
Q = "model.layers.0.self_attn.q_proj"


def refusal(directory, weights=True):
    with pytest.raises(UserError) as caught:
        load(directory) if weights else resolve_source(directory, weights=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json", "model-2.safetensors"],
)
def test_a_pointer_of_git_lfs_in_place_of_any_file_is_named(tmp_path, name):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(), num_files=4 if "-" in name or "index" in name else 1)
    (source / name).write_text(POINTER)
    for weights in (True, False):
        assert f"a Git LFS pointer in place of {name}: run `git lfs pull`" in refusal(source, weights)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("adapter_config.json", "a LoRA adapter without its base model (adapter_config.json): merge it"),
        ("qwen-Q4_K_M.gguf", "a GGUF model (qwen-Q4_K_M.gguf): give the float model"),
        ("onnx/model.onnx", "an ONNX model (onnx/model.onnx)"),
        ("pytorch_model-00001-of-00002.bin", "pickled weights, which are not read because"),
        ("consolidated.00.pth", "pickled weights"),
        ("model-00001-of-00002.safetensors", "safetensors of another name or without their index"),
        ("adapter_model.safetensors", "safetensors of another name"),
        (".cache/huggingface/download/x.1f2e.incomplete", "an incomplete download"),
        ("checkpoint-500/model.safetensors", "checkpoints of another trainer (checkpoint-500): give one"),
        ("snapshots/0a1b/config.json", "snapshots of the hub's cache (snapshots/0a1b)"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_a_directory_of_another_form_says_what_it_holds(tmp_path, name, form, has_config):
    if has_config:
        (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    for weights in {True, has_config}:
        message = refusal(tmp_path, weights)
        assert message.startswith(f"{tmp_path} is not a checkpoint: it holds {form}"), message


def quantised(method, dtype, *suffixes, **settings):
    names = [f"{Q}.{suffix}" for suffix in suffixes]
    return {Q + ".weight": None} | {name: np.zeros(4, dtype) for name in names}, {
        "quantization_config": {"quant_method": method} | settings
    }


@pytest.mark.parametrize(
    ("changes", "config", "form"),
    [
        (*quantised("gptq", np.int32, "qweight", "qzeros", "scales", "g_idx"), "quantised weights by GPTQ"),
        (*quantised("awq", np.int32, "qweight", "qzeros", "scales"), "quantised weights by AWQ"),
        (*quantised("bitsandbytes", np.uint8, "weight.absmax", "weight.quant_map"), "quantised weights by BITSANDBYTES"),
        (*quantised("fp8", np.float32, "weight_scale_inv"), "quantised weights by FP8"),
        (*quantised("compressed-tensors", np.int32, "weight_packed", "weight_shape"), "by COMPRESSED-TENSORS"),
        ({Q + ".weight": np.zeros(4, np.uint32), Q + ".scales": np.zeros(4), Q + ".biases": np.zeros(4)},
         {"quantization": {"bits": 4}}, "quantised weights ("),
        ("_orig_mod.", {}, "the names of a wrapped model (torch.compile, DDP or FSDP) (_orig_mod.model.embed"),
        ("module.", {}, "the names of a wrapped model"),
        ("base_model.model.", {}, "(base_model.model.model.embed_tokens.weight): rename them"),
        ("thinker.", {}, "(thinker.model.embed_tokens.weight): rename them"),
        (len("model."), {}, "(embed_tokens.weight): rename them"),
        ({Q + ".lora_A.weight": np.zeros(4)}, {}, "LoRA adapters that are not merged"),
        ({Q + ".weight": None, Q + ".base_layer.weight": np.zeros(4)}, {}, "LoRA adapters that are not merged"),
        ({"score.weight": np.zeros((2, 32))}, {}, "the head of a classifier or a reward model"),
    ],
)  # fmt: skip
def test_tensors_of_another_form_are_one_line(tmp_path, changes, config, form):
    tensors = tiny_tensors()
    if isinstance(changes, dict):
        tensors = {name: x for name, x in (tensors | changes).items() if x is not None}
    elif isinstance(changes, str):
        tensors = {changes + name: x for name, x in tensors.items()}
    else:
        tensors = {name[changes:]: x for name, x in tensors.items()}
    assert form in refusal(write_checkpoint(tmp_path / "in", tensors, **config))


def test_float_weights_are_read_whatever_the_config_says_of_a_quantizer(tmp_path):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    load(write_checkpoint(tmp_path / "in", tiny_tensors(), quantization_config=settings))
