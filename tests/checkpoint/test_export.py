"""Exports: what other readers see of them, and what a failure leaves behind."""

import dataclasses
import json

import jax
import pytest

from s1jax.checkpoint import huggingface
from s1jax.checkpoint.export import save_hf, write_model_files
from s1jax.checkpoint.source import read_config, resolve_source
from s1jax.model.config import ModelConfig
from tests.support.checkpoints import QWEN3, TINY, load, raw, tiny_tensors, write_checkpoint


def test_an_export_that_fails_midway_leaves_the_old_one_in_place(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    config, params = load(source)
    save_hf(tmp_path / "out", config, params, None, source)
    before = raw(tmp_path / "out")
    with pytest.raises(ValueError, match="not empty"):
        save_hf(tmp_path / "out", config, params, None, source)
    halved = jax.tree.map(lambda x: x / 2, params)
    gather, calls = huggingface._gather, []

    def fail_at_fifth(*args):
        calls.append(args)
        if len(calls) == 5:
            raise OSError("No space left on device")
        return gather(*args)

    with monkeypatch.context() as patch:
        patch.setattr(huggingface, "_gather", fail_at_fifth)
        with pytest.raises(OSError, match="No space"):
            save_hf(tmp_path / "out", config, halved, None, source, overwrite=True)
    assert raw(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    save_hf(tmp_path / "out", config, halved, None, source, overwrite=True)
    assert raw(tmp_path / "out") != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="is not a checkpoint, so it is not overwritten"):
        save_hf(tmp_path / "precious", config, params, None, source, overwrite=True)
    (tmp_path / "out" / "results.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=r"also holds results\.jsonl, which would be lost: move that elsewhere"):
        save_hf(tmp_path / "out", config, halved, None, source, overwrite=True)
    assert (tmp_path / "out" / "results.jsonl").read_text() == "mine"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_transformers_loads_the_export_and_computes_the_same_logits(tmp_path, family, tied, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM

    changes = QWEN3 if family == "qwen3" else {}
    tensors = tiny_tensors(tied, family=family)
    source = write_checkpoint(tmp_path / "in", tensors, 2, tie_word_embeddings=tied, **changes)
    (source / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    config, params = load(source, "per_layer")
    tokens = torch.arange(20)[None] % 64

    def logits(directory, **expected):
        model, found = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
        assert model.config.model_type == family and not any(found.values()), found
        assert model.config.eos_token_id == expected.get("eos_token_id", [7, 9])
        with torch.no_grad():
            return model.dtype, model(tokens).logits

    monkeypatch.setattr(huggingface, "MAX_SHARD_BYTES", 30_000)
    save_hf(tmp_path / "same", config, params, None, source)
    dtype, same = logits(tmp_path / "same")
    assert dtype == torch.float32 and torch.equal(same, logits(source)[1])
    save_hf(tmp_path / "half", config, params, "bfloat16", source)
    dtype, half = logits(tmp_path / "half")
    assert dtype == torch.bfloat16 and not torch.equal(half.float(), same)
    # A config of our own making, without the source's: what the model computes is the same.
    save_hf(tmp_path / "bare", config, params, None, None)
    dtype, bare = logits(tmp_path / "bare", eos_token_id=None)
    assert dtype == torch.float32 and torch.equal(bare, same)


def test_a_config_keeps_the_fields_it_came_with_only_if_it_is_the_same_model(tmp_path):
    # The last fields tell how the weights were once stored, by whom, and where.
    stale = dict(quantization_config={"load_in_4bit": True}, _name_or_path="a/b", transformers_version="4.1")
    source = write_checkpoint(tmp_path / "in", tiny_tensors(), dtype="float32", **stale)
    config = resolve_source(source).model_config()
    write_model_files(tmp_path / "a", config, source, "bfloat16")
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written == TINY | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    other = dataclasses.replace(config, rope_theta=5e5)
    write_model_files(tmp_path / "b", other, source, "float32")
    assert ModelConfig.from_hf(read_config(tmp_path / "b")) == other
