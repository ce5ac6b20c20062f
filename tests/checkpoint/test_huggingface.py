"""Hugging Face weights come in and go out: every bit, onto any mesh, and all that is wrong with them is named."""

import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from s1jax.checkpoint import huggingface, safetensors
from s1jax.checkpoint.export import save_hf
from s1jax.model.qwen2 import abstract_params
from s1jax.ops import bits
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import ROOT
from tests.support.checkpoints import QWEN3, RULES, assert_same, load, mesh_of, raw, tiny_tensors, write_checkpoint


@pytest.mark.parametrize(
    ("dtype", "tied", "num_files", "layout", "family"),
    [
        ("BF16", True, 1, "stacked", "qwen2"),
        ("F32", False, 3, "per_layer", "qwen2"),
        ("F16", True, 2, "per_layer", "qwen2"),
        ("BF16", False, 3, "per_layer", "qwen2"),
        ("F8_E4M3", False, 2, "stacked", "qwen2"),
        ("F8_E5M2", True, 1, "stacked", "qwen2"),
        ("BF16", True, 1, "stacked", "qwen3"),
        ("F32", False, 3, "per_layer", "qwen3"),
    ],
)
def test_import_then_export_keeps_every_bit(tmp_path, dtype, tied, num_files, layout, family, monkeypatch):
    tensors = tiny_tensors(tied, dtype, bits=True, family=family)
    changes = QWEN3 if family == "qwen3" else {}
    source = write_checkpoint(tmp_path / "in", tensors, num_files, tie_word_embeddings=tied, **changes)
    config, params = load(source, layout)
    monkeypatch.setattr(huggingface, "MAX_SHARD_BYTES", 20_000 if num_files > 1 else 10**9)
    save_hf(tmp_path / "out", config, params, None, source)
    assert raw(tmp_path / "out") == raw(source)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1 or num_files == 1
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (num_files > 1)


def test_both_layouts_hold_the_weights_in_the_shapes_and_shardings_of_the_model(tmp_path):
    tensors = tiny_tensors(tied=False)
    source = write_checkpoint(tmp_path / "in", tensors, tie_word_embeddings=False)
    for layout in ("stacked", "per_layer"):
        config, params = load(source, layout)
        target = abstract_params(config, RULES, layout, mesh_of())
        assert jax.tree.structure(params) == jax.tree.structure(target)
        for leaf, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True):
            assert leaf.shape == wanted.shape and leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        attention = params["layers"]["self_attn"] if layout == "stacked" else params["layers"][1]["self_attn"]
        q = attention["q_proj"]["kernel"][1] if layout == "stacked" else attention["q_proj"]["kernel"]
        o = attention["o_proj"]["kernel"][1] if layout == "stacked" else attention["o_proj"]["kernel"]
        hf_q, hf_o = (tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qo")
        x = np.arange(32.0, dtype=np.float32)
        np.testing.assert_allclose(np.einsum("D,NHD->NH", x, q).ravel(), hf_q @ x, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(np.einsum("NH,DNH->D", x.reshape(4, 8), o), hf_o @ x, rtol=1e-4, atol=1e-3)


def test_a_dtype_that_is_asked_for_is_rounded_to_once(tmp_path):
    tensors = tiny_tensors(dtype="F64")
    source = write_checkpoint(tmp_path / "in", tensors)
    for dtype in ("float32", "bfloat16"):
        _, params = load(source, param_dtype=dtype)
        expected = tensors["model.embed_tokens.weight"].astype(jnp.dtype(dtype))
        np.testing.assert_array_equal(np.asarray(params["embed_tokens"]["weight"]), expected)
    with pytest.raises(ValueError, match="F64 cannot be kept"):
        load(source)


def test_a_finite_number_that_a_dtype_cannot_hold_is_refused_on_the_way_in_and_out(tmp_path):
    embedding, middle = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"
    for stored in ("F64", "F32", "BF16"):
        tensors = tiny_tensors(dtype=stored)
        tensors[embedding][3, 4] = -65536
        with pytest.raises(ValueError, match=f"{embedding} holds numbers beyond 65504, the largest of float16: choose"):
            load(write_checkpoint(tmp_path / stored, tensors), param_dtype="float16")
    tensors = tiny_tensors()
    tensors[middle][3, 4] = -65536
    source = write_checkpoint(tmp_path / "in", tensors)
    for layout in ("stacked", "per_layer"):
        config, params = load(source, layout)
        with pytest.raises(ValueError, match=f"{middle} holds numbers beyond 65504"):
            save_hf(tmp_path / "out", config, params, "float16", source)
    assert not (tmp_path / "out").exists()


def test_only_numbers_are_out_of_a_range_and_only_smaller_ranges_are_looked_at(monkeypatch):
    fine = {"float16": 65504, "float8_e4m3fn": 448, "float8_e5m2": 57344}
    for dtype, largest in fine.items():
        for x in (np.array([largest, np.inf, np.nan]), jnp.array([-largest, -np.inf, np.nan], jnp.float32)):
            bits.check_range("w", x, dtype)
            with pytest.raises(ValueError, match=f"w holds numbers beyond {largest}"):
                bits.check_range("w", x * 1.01, dtype)
    with pytest.raises(ValueError, match="beyond 57344"):
        bits.check_range("w", jnp.float16([65504]), "float8_e5m2")
    monkeypatch.setattr(bits, "_is_beyond", lambda *_: pytest.fail("looked at numbers that fit"))
    for dtype, other in (
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "bfloat16"),
        ("float16", "float16"),
    ):
        bits.check_range("w", jnp.ones(3, dtype), other)


def test_dtypes_may_differ_between_weights_but_not_within_a_stack(tmp_path):
    tensors = tiny_tensors(dtype="BF16", bits=True)
    norms = {name for name in tensors if "norm" in name}
    mixed = tensors | {name: np.ones(32, np.float32) for name in norms}
    source = write_checkpoint(tmp_path / "mixed", mixed)
    config, params = load(source)
    save_hf(tmp_path / "out", config, params, None, source)
    assert raw(tmp_path / "out") == raw(source)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    broken = write_checkpoint(tmp_path / "broken", tensors | {min(norms): np.ones(32, np.float32)})
    with pytest.raises(ValueError, match=r"model.layers.\*.input_layernorm.weight has dtypes BF16, F32"):
        load(broken)
    load(broken, param_dtype="bfloat16")


def test_every_byte_is_read_once_however_many_devices_hold_it(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(tied=False), 2, tie_word_embeddings=False)
    reads = []
    read_exactly = safetensors.read_exactly

    def recording(file, buffer, offset):
        reads.append((os.readlink(f"/proc/self/fd/{file}"), offset, len(buffer)))
        read_exactly(file, buffer, offset)

    monkeypatch.setattr(safetensors, "read_exactly", recording)
    load(source, mesh=mesh_of(data=2, fsdp=2, tensor=2))
    reads.sort()
    assert sum(size for *_, size in reads) == sum(len(data) for *_, data in raw(source).values())
    assert all(a[0] != b[0] or a[1] + a[2] <= b[1] for a, b in itertools.pairwise(reads))


LOAD_MEASURED = """
import sys
import jax
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from s1jax.checkpoint.train_state import StateStore
def mebibytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
tiny, source = map(resolve_source, sys.argv[1:])
mesh, rules = make_mesh(MeshConfig(fsdp=4, tensor=2)), ShardingRules()
load_model(tiny, mesh, rules, "stacked")
open("/proc/self/clear_refs", "w").write("5")
before = mebibytes("VmRSS")
config, params = load_model(source, mesh, rules, "stacked", param_dtype=None)
held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards) / 2**20
print(mebibytes("VmHWM") - before - held, params["embed_tokens"]["weight"].nbytes / 2**20)
"""


@pytest.mark.slow
def test_loading_holds_no_more_than_two_tensors_beyond_the_shards(tmp_path, real_model):
    tiny = write_checkpoint(tmp_path / "tiny", tiny_tensors())
    command = [sys.executable, "-c", LOAD_MEASURED, tiny, real_model]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extra, largest = map(float, done.stdout.split())
    assert extra < 2 * largest


def break_missing(d, t):
    del t["model.norm.weight"]


def break_unexpected(d, t):
    t["model.layers.3.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)


def break_misshapen(d, t):
    t["model.layers.1.mlp.up_proj.weight"] = np.zeros((32, 48), np.float32)


def break_tied(d, t):
    t["lm_head.weight"] = t["model.embed_tokens.weight"] + 1


def break_dtype(d, t):
    t["model.layers.1.self_attn.q_proj.bias"] = np.zeros(32, np.int32)


BREAKS = {
    break_missing: "model.norm.weight is missing",
    break_unexpected: "model.layers.3.mlp.up_proj.weight is unexpected",
    break_misshapen: "model.layers.1.mlp.up_proj.weight has shape [32, 48], the config asks for [48, 32]",
    break_tied: "lm_head.weight differs from the embedding",
    break_dtype: "model.layers.1.self_attn.q_proj.bias has dtype I32",
}


@pytest.mark.parametrize("damage", BREAKS)
def test_what_is_wrong_with_a_tensor_is_named(tmp_path, damage):
    tensors = tiny_tensors()
    damage(tmp_path, tensors)
    with pytest.raises(ValueError) as caught:
        load(write_checkpoint(tmp_path / "in", tensors))
    assert BREAKS[damage] in str(caught.value) and "\n" not in str(caught.value)


def test_weights_of_the_other_family_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.bias is missing"):
        load(write_checkpoint(tmp_path / "a", tiny_tensors(family="qwen3"), head_dim=16))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_norm\.weight is missing"):
        load(write_checkpoint(tmp_path / "b", tiny_tensors(), **QWEN3))


def test_all_that_is_wrong_with_tensors_is_raised_together(tmp_path):
    tensors = tiny_tensors()
    for damage in BREAKS:
        damage(tmp_path, tensors)
    with pytest.raises(ValueError) as caught:
        load(write_checkpoint(tmp_path / "in", tensors, num_files=6))
    assert f"{len(BREAKS)} problems" in str(caught.value)
    assert all(expected in str(caught.value) for expected in BREAKS.values())


def test_all_that_is_wrong_with_files_is_raised_together(tmp_path):
    tensors = tiny_tensors()
    source = write_checkpoint(tmp_path / "in", tensors, num_files=6)
    index_path = source / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    holder = index["weight_map"]
    # Three whole files fail: absent, truncated, no safetensors; and the index misplaces one tensor of a good file.
    special = ["model-x.safetensors", "model-y.safetensors", "model-z.safetensors"]
    victims = [f"model.layers.2.{n}.weight" for n in ("input_layernorm", "mlp.down_proj", "self_attn.k_proj")]
    for name, file in zip(victims, special, strict=True):
        save_file({name: tensors[name]}, source / file)
        old = source / holder[name]
        rest = {n: tensors[n] for n in tensors if n != name and holder.get(n) == holder[name]}
        save_file(rest, old)
        holder[name] = file
    (source / special[0]).unlink()
    os.truncate(source / special[1], 2000)
    (source / special[2]).write_bytes(b"\x00" * 20 + os.urandom(50))
    misplaced = "model.layers.2.mlp.gate_proj.weight"
    true_file = holder[misplaced]
    holder[misplaced] = next(f for f in holder.values() if f not in special and f != true_file)
    index_path.write_text(json.dumps(index))
    with pytest.raises(ValueError) as caught:
        load(source)
    message = str(caught.value)
    assert "1 of the 9 files that model.safetensors.index.json names are absent (model-x.safetensors)" in message
    assert "model-y.safetensors is truncated" in message
    assert "model-z.safetensors is truncated, has bytes behind its data, or is no safetensors file" in message
    assert f"the index places {misplaced} in {holder[misplaced]}, which does not hold it" in message
    assert f"{true_file} holds {misplaced}, which the index does not place there" in message
    assert "5 problems" in message


def test_a_tied_model_with_a_copy_of_its_embedding_as_lm_head_loads(tmp_path):
    tensors = tiny_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    plain = load(write_checkpoint(tmp_path / "plain", tensors))[1]
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    copied = load(write_checkpoint(tmp_path / "copied", tensors, 2))[1]
    assert_same(copied, plain)


def test_an_untied_model_without_lm_head_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(), tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
        load(source)


@pytest.mark.parametrize(
    "text", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "[" * 10**5, '{"weight_map": {"a": "x"}', "\udcff"]
)
def test_an_index_that_is_no_index_is_named(tmp_path, text):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(), num_files=2)
    (source / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=f"^{source}/model.safetensors.index.json is not JSON with a weight_map"):
        load(source)
