import dataclasses
import itertools
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save_file

from s1jax.checkpoint import huggingface, safetensors
from s1jax.checkpoint.directories import new_directory
from s1jax.checkpoint.export import save_hf, save_params, write_model_files
from s1jax.checkpoint.orbax import finished_steps
from s1jax.checkpoint.source import fingerprint, load_tokenizer, read_config, resolve_model
from s1jax.checkpoint.train_state import StateStore
from s1jax.model.qwen2 import abstract_params, init_params
from s1jax.ops import bits
from s1jax.runtime.command import listed
from tests.support.checkpoints import RULES, TINY, assert_same, load, make_state, mesh_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def tiny_tensors(tied=True, dtype="F32", seed=0, bits=False):
    """A Qwen2 checkpoint by its published names and shapes; with `bits`, of random bits: NaNs, infinities and subnormals too."""
    D, F, V, N, K, H = 32, 48, 64, 4, 2, 8
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(3):
        layer = f"model.layers.{i}."
        shapes |= {layer + name + ".weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, width in (("q", N * H), ("k", K * H), ("v", K * H)):
            shapes |= {
                f"{layer}self_attn.{name}_proj.weight": (width, D),
                f"{layer}self_attn.{name}_proj.bias": (width,),
            }
        shapes[layer + "self_attn.o_proj.weight"] = (D, N * H)
        shapes |= {
            layer + "mlp.gate_proj.weight": (F, D),
            layer + "mlp.up_proj.weight": (F, D),
            layer + "mlp.down_proj.weight": (D, F),
        }
    if not tied:
        shapes["lm_head.weight"] = (V, D)
    rng = np.random.default_rng(seed)
    np_dtype = safetensors.FLOAT_DTYPES[dtype]
    if bits:
        return {
            n: rng.integers(0, 256, (*s, np_dtype.itemsize), np.uint8).view(np_dtype)[..., 0] for n, s in shapes.items()
        }
    return {name: rng.normal(0, 0.3, shape).astype(np_dtype) for name, shape in shapes.items()}


def write_checkpoint(directory, tensors, num_files=1, **config):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(TINY | config))
    names = sorted(tensors)
    if num_files == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    files = {name: f"model-{i % num_files}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: tensors[n] for n in names if files[n] == file}, directory / file, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return directory


def raw(directory):
    """Names, dtypes, shapes and bytes of a directory's tensors, as the safetensors package reads them."""
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= {n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in deserialize(path.read_bytes())}
    return found


def convert(*args):
    """Run launch/convert.py in this process; return its exit code."""
    argv = sys.argv
    sys.argv = ["convert.py", *map(str, args)]
    try:
        runpy.run_path(str(ROOT / "launch" / "convert.py"), run_name="__main__")
        return 0
    except SystemExit as exit:
        return exit.code
    finally:
        sys.argv = argv


@pytest.mark.parametrize(
    ("dtype", "tied", "num_files", "layout"),
    [
        ("BF16", True, 1, "stacked"),
        ("F32", False, 3, "per_layer"),
        ("F16", True, 2, "per_layer"),
        ("BF16", False, 3, "per_layer"),
        ("F8_E4M3", False, 2, "stacked"),
        ("F8_E5M2", True, 1, "stacked"),
    ],
)
def test_import_then_export_keeps_every_bit(tmp_path, dtype, tied, num_files, layout):
    tensors = tiny_tensors(tied, dtype, bits=True)
    source = write_checkpoint(tmp_path / "in", tensors, num_files, tie_word_embeddings=tied)
    config, params = load(source, layout)
    save_hf(tmp_path / "out", config, params, None, source, max_shard_bytes=20_000 if num_files > 1 else 10**9)
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
    monkeypatch.setattr(bits, "_is_beyond", None)
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


def test_a_block_is_read_by_reading_its_own_bytes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(6, 5, 4)), "b": rng.normal(size=(7, 9)), "c": rng.normal(size=11)}
    tensors["d"] = np.asarray(3.0)
    save_file(tensors, tmp_path / "x.safetensors")
    header = safetensors.read_header(tmp_path / "x.safetensors")
    num_read = 0
    read_exactly = safetensors.read_exactly

    def counting(file, buffer, offset):
        nonlocal num_read
        num_read += len(buffer)
        read_exactly(file, buffer, offset)

    monkeypatch.setattr(safetensors, "read_exactly", counting)
    for _ in range(200):
        name = rng.choice(list(tensors))
        block = tuple(tuple(sorted(int(x) for x in rng.integers(0, n + 1, 2))) for n in tensors[name].shape)
        num_read = 0
        data = safetensors.read_block(header[name], block)
        np.testing.assert_array_equal(data, tensors[name][tuple(slice(*b) for b in block)])
        assert num_read == data.nbytes
    reads = []
    monkeypatch.setattr(safetensors, "read_exactly", lambda file, buffer, offset: reads.append(len(buffer)))
    safetensors.read_block(header["a"], ((2, 4), (0, 5), (0, 4)))
    assert reads == [2 * 5 * 4 * 8]


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


TWO_PROCESSES = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax
process, port, source, out = int(sys.argv[1]), *sys.argv[2:5]
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
from jax.experimental import multihost_utils
from s1jax.checkpoint import safetensors
from s1jax.checkpoint.export import save_hf, save_params, write_model_files
from s1jax.checkpoint.source import load_model, load_tokenizer, read_config
from s1jax.model.qwen2 import init_params
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from s1jax.checkpoint.train_state import StateStore
num_read = 0
read_exactly = safetensors.read_exactly
def counting(file, buffer, offset):
    global num_read
    num_read += len(buffer)
    read_exactly(file, buffer, offset)
safetensors.read_exactly = counting
halves, copies = (make_mesh(mesh) for mesh in (MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=1, tensor=4)))
# Every other column is this process's: what it holds is no contiguous block.
columns = np.array(jax.devices()).reshape(2, 1, 1, 4).T.reshape(1, 8, 1, 1)
columns = jax.sharding.Mesh(columns, copies.axis_names, axis_types=copies.axis_types)
for mesh in (halves, columns, copies):
    num_read = 0
    config, params = load_model(source, mesh, ShardingRules(), "stacked", param_dtype=None)
    held = 0
    for leaf in jax.tree.leaves(params):
        blocks = {str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}
        held += sum(blocks.values())
    assert num_read == held, (num_read, held)
    print("share", held / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
save_hf(out + "/hf", config, params, None, None)
save_params(out + "/orbax", config, params, source)
made = init_params(config, ShardingRules(), "stacked", columns, 5, part=lambda tree: tree["embed_tokens"])
np.save(out + "/made" + sys.argv[1], multihost_utils.process_allgather(made["weight"], tiled=True))
store = StateStore(out + "/run/checkpoints", keep=1)
store.save(1, {"params": params}, {"a": 1})
store.save(2, {"params": params}, {"a": 2})
store.close()
"""


def test_each_of_two_processes_reads_only_what_its_devices_hold_and_they_save_together(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(dtype="BF16", bits=True))
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-c", TWO_PROCESSES]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [*command, str(i), str(port), source, tmp_path], env=env, text=True, stdout=-1, stderr=subprocess.STDOUT
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for output in outputs:
        shares = [float(line.split()[1]) for line in output.splitlines() if line.startswith("share")]
        assert len(shares) == 3 and shares[0] < 0.6 and shares[1] < 0.6 and shares[2] == 1.0
    assert raw(tmp_path / "hf") == raw(source)
    assert finished_steps(tmp_path / "run" / "checkpoints") == [2]
    shutil.copy(source / "config.json", tmp_path / "run")
    expected = load(source)[1]
    assert_same(load(tmp_path / "orbax")[1], expected)
    assert_same(load(tmp_path / "run")[1], expected)
    config, _ = read_config(source)
    drawn = init_params(config, RULES, "stacked", mesh_of(), 5, part=lambda tree: tree["embed_tokens"])["weight"]
    for process in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"made{process}.npy"), drawn)


LOAD_MEASURED = """
import sys
import jax
from s1jax.checkpoint.source import load_model
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from s1jax.checkpoint.train_state import StateStore
def mebibytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024
tiny, source = sys.argv[1:]
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
    assert BREAKS[damage] in str(caught.value)
    assert "1 problem(s)" in str(caught.value)


def test_all_that_is_wrong_is_raised_together(tmp_path, monkeypatch):
    tensors = tiny_tensors()
    for damage in BREAKS:
        damage(tmp_path, tensors)
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
    with pytest.raises(ValueError, match=f"and {len(BREAKS) + 5 - 8} more$"):
        load(source)
    monkeypatch.setattr(huggingface, "listed", lambda problems: listed(problems, shown=99))
    with pytest.raises(ValueError) as caught:
        load(source)
    message = str(caught.value)
    for expected in BREAKS.values():
        assert expected in message
    assert "model-x.safetensors, which is absent" in message
    assert "model-y.safetensors is truncated" in message
    assert "model-z.safetensors is no safetensors file" in message
    assert f"the index places {misplaced} in {holder[misplaced]}, which does not hold it" in message
    assert f"{true_file} holds {misplaced}, which the index does not place there" in message
    assert f"{len(BREAKS) + 5} problem(s)" in message
    # What lies in an unreadable file is not called missing as well.
    assert not any(f"{name} is missing" in message for name in (*victims, misplaced))


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
    ("header", "message"),
    [
        (b"", "does not start with the length"),
        ((2**40).to_bytes(8, "little") + b"x" * 64, "does not start with the length"),
        ((500).to_bytes(8, "little") + b"x" * 64, "truncated"),
        ((8).to_bytes(8, "little") + b"\xff\xfe{}abcd", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "cannot take 4 bytes"),
        ('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "malformed"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "cannot take -8 bytes"),
        ('{"a":[1]}', "malformed"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "truncated"),
    ],
)
def test_a_corrupt_file_is_named_with_its_fault(tmp_path, header, message):
    source = write_checkpoint(tmp_path / "in", {"a": np.zeros(1, np.float32)})
    data = header if isinstance(header, bytes) else len(header).to_bytes(8, "little") + header.encode()
    (source / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load(source)
    assert str(source / "model.safetensors") in str(caught.value)


def test_convert_ends_bad_input_with_one_message_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    good = write_checkpoint(tmp_path / "good", tiny_tensors())
    corrupt = write_checkpoint(tmp_path / "corrupt", tiny_tensors())
    os.truncate(corrupt / "model.safetensors", 5000)
    bad_index = write_checkpoint(tmp_path / "bad_index", tiny_tensors(), 2)
    (bad_index / "model.safetensors.index.json").write_text("{")
    bad_config = write_checkpoint(tmp_path / "bad_config", tiny_tensors(), hidden_size="wide")
    llama = write_checkpoint(tmp_path / "llama", tiny_tensors(), model_type="llama")
    pickled = write_checkpoint(tmp_path / "pickled", tiny_tensors())
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    no_config = write_checkpoint(tmp_path / "no_config", tiny_tensors())
    (no_config / "config.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = tmp_path / "run"
    (unfinished / "checkpoints" / "5").mkdir(parents=True)
    no_params = tmp_path / "no_params"
    shutil.copytree(empty, no_params / "params")
    (no_params / "config.json").write_text(json.dumps(TINY))
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    for source, message in {
        tmp_path / "absent": "no directory",
        "nobody/no-such-model": f"no directory nobody/no-such-model in {Path.cwd()}, and the Hugging Face hub could not be reached\n",
        good / "config.json": "is a file",
        corrupt: "is truncated",
        bad_index: "is not JSON",
        bad_config: "config.json",
        llama: "model_type is 'llama'",
        pickled: "only safetensors is",
        no_config: "has no config.json",
        empty: "is no checkpoint",
        unfinished: "without a finished checkpoint",
        unfinished / "checkpoints" / "5": "is not a finished checkpoint",
        no_params: "cannot read checkpoint",
    }.items():
        assert convert(source, tmp_path / "out") == 1, source
        stderr = capsys.readouterr().err
        assert stderr.startswith("error: ") and message in stderr and "Traceback" not in stderr, stderr
        assert sorted(tmp_path.iterdir()) == before
    assert convert(good, corrupt) == 1 and "exists and is not empty" in capsys.readouterr().err
    assert convert(good, good / "config.json") == 1 and "is no directory" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(good)
    for inside in (good / "out", tmp_path / "link" / "a" / "out"):
        assert convert(good, inside) == 1 and f"{inside} lies in {good}" in capsys.readouterr().err
    (tmp_path / "link").unlink()
    assert convert(good, tmp_path / "out", "--dtype", "int8") == 1
    assert "dtype is 'int8': choose one of float32, bfloat16, float16" in capsys.readouterr().err
    long_name = tmp_path / ("x" * 250)
    with monkeypatch.context() as patch:
        patch.setattr("s1jax.checkpoint.source.load_model", None)
        for place in (Path("/dev/null/a/out"), Path("/proc/out"), long_name):
            assert convert(good, place) == 1
            stderr = capsys.readouterr().err
            assert stderr.startswith(f"error: {place} cannot be made in ") and ".partial" not in stderr, stderr
        patch.setattr(os.path, "ismount", lambda path: str(path) == str(empty))
        assert convert(good, empty) == 1 and "is where a file system is mounted" in capsys.readouterr().err

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    (good / "tokenizer.json").write_text("{}")
    assert convert(good, tmp_path / "out") == 1 and "No space left" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


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
    with pytest.raises(ValueError, match="is no checkpoint, so it is not overwritten"):
        save_hf(tmp_path / "precious", config, params, None, source, overwrite=True)


def write_new(path, text, overwrite=True):
    with new_directory(path, overwrite) as partial:
        (partial / "config.json").write_text(text)


@pytest.mark.parametrize("crashed_after_renames", [1, 2])
def test_a_replacement_that_crashed_is_settled_by_the_next_one(tmp_path, crashed_after_renames):
    out, partial, replaced = (tmp_path / name for name in ("out", ".out.partial", ".out.replaced"))

    def crash():
        for path, text in ((replaced, "old"), (partial if crashed_after_renames == 1 else out, "new")):
            path.mkdir()
            (path / "config.json").write_text(text)

    crash()
    with pytest.raises(ValueError, match="not empty"):
        write_new(out, "newer", overwrite=False)
    assert (out / "config.json").read_text() == ("old" if crashed_after_renames == 1 else "new")
    shutil.rmtree(out)
    shutil.rmtree(partial, ignore_errors=True)
    crash()
    write_new(out, "newer")
    assert (out / "config.json").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_a_replacement_that_fails_leaves_the_old_directory(tmp_path, monkeypatch, failing_rename):
    write_new(tmp_path / "out", "old")
    rename, calls = Path.rename, []

    def fail_once(path, target):
        calls.append(path)
        if len(calls) == failing_rename:
            raise OSError("stale file handle")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="stale file handle"):
        write_new(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_fingerprint_of_a_source_changes_with_its_config_and_its_weight_files(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    assert fingerprint(source) == fingerprint(shutil.copytree(source, tmp_path / "copy"))
    found = {fingerprint(source)}
    for name, change in (("theta", dict(rope_theta=5.0)), ("dtype", {})):
        tensors = tiny_tensors(dtype="BF16" if name == "dtype" else "F32")
        found.add(fingerprint(write_checkpoint(tmp_path / name, tensors, **change)))
    save_params(tmp_path / "orbax", *load(source), source)
    found.add(fingerprint(tmp_path / "orbax"))
    next((tmp_path / "orbax" / "params").rglob("d/*")).write_bytes(b"")
    found.add(fingerprint(tmp_path / "orbax"))
    assert len(found) == 5


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_export_and_computes_the_same_logits(tmp_path, tied):
    import torch
    from transformers import AutoModelForCausalLM

    source = write_checkpoint(tmp_path / "in", tiny_tensors(tied), 2, tie_word_embeddings=tied)
    (source / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    config, params = load(source, "per_layer")
    tokens = torch.arange(20)[None] % 64

    def logits(directory, **expected):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
        assert model.config.eos_token_id == expected.get("eos_token_id", [7, 9])
        with torch.no_grad():
            return model.dtype, model(tokens).logits

    save_hf(tmp_path / "same", config, params, None, source, max_shard_bytes=30_000)
    dtype, same = logits(tmp_path / "same")
    assert dtype == torch.float32 and torch.equal(same, logits(source)[1])
    save_hf(tmp_path / "half", config, params, "bfloat16", source)
    dtype, half = logits(tmp_path / "half")
    assert dtype == torch.bfloat16 and not torch.equal(half.float(), same)
    # A config of our own making, without the source's: what the model computes is the same.
    save_hf(tmp_path / "bare", config, params, None, None)
    dtype, bare = logits(tmp_path / "bare", eos_token_id=None)
    assert dtype == torch.float32 and torch.equal(bare, same)


@pytest.mark.slow
def test_the_real_model_goes_to_orbax_and_back_by_the_command_bit_for_bit(tmp_path, real_model):
    env = os.environ | {"PYTHONWARNINGS": ""}
    command = [sys.executable, ROOT / "launch" / "convert.py"]
    for args in ([real_model, tmp_path / "orbax", "--mesh.tensor", "2"], [tmp_path / "orbax", tmp_path / "hf"]):
        done = subprocess.run([*command, *args], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("wrote ")
    assert raw(tmp_path / "hf") == raw(real_model)
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == json.loads(
        (real_model / "config.json").read_text()
    )
    ids = [
        load_tokenizer(path)("Wait, 12 + 7?").input_ids for path in (real_model, tmp_path / "orbax", tmp_path / "hf")
    ]
    assert ids[0] == ids[1] == ids[2]


def test_a_pre_sharded_checkpoint_is_the_same_on_any_mesh_and_in_either_layout(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(False, "BF16", bits=True), tie_word_embeddings=False)
    config, params = load(source)
    save_params(tmp_path / "orbax", config, params, source)
    for mesh in (mesh_of(1, 1, 1), mesh_of(2, 2, 2), mesh_of(1, 8, 1)):
        for layout in ("stacked", "per_layer"):
            found_config, found = load(tmp_path / "orbax", layout, mesh=mesh)
            assert found_config == config
            assert_same(found, load(source, layout)[1])
            target = abstract_params(config, RULES, layout, mesh)
            for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
                assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    finite = write_checkpoint(tmp_path / "finite", tiny_tensors(dtype="BF16"))
    save_params(tmp_path / "finite_orbax", *load(finite), finite)
    assert_same(load(tmp_path / "finite_orbax", param_dtype="float32")[1], load(finite, param_dtype="float32")[1])


def test_a_pre_sharded_checkpoint_of_another_model_is_refused_with_all_differences(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    save_params(tmp_path / "orbax", *load(source), source)
    (tmp_path / "orbax" / "config.json").write_text(json.dumps(TINY | {"vocab_size": 80, "tie_word_embeddings": False}))
    with pytest.raises(ValueError) as caught:
        load(tmp_path / "orbax")
    assert "lm_head.kernel is missing" in str(caught.value)
    assert "embed_tokens.weight has shape [64, 32], the config asks for [80, 32]" in str(caught.value)


def test_a_pre_sharded_checkpoint_that_lost_a_file_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    save_params(tmp_path / "orbax", *load(source), source)
    next((tmp_path / "orbax" / "params").rglob("d/*")).unlink()
    with pytest.raises(ValueError, match=r"cannot read checkpoint .*/params .* is absent"):
        load(tmp_path / "orbax")


def test_a_training_run_and_each_of_its_steps_is_a_model(tmp_path, qwen_tokenizer, shared):
    mesh = mesh_of()
    run = tmp_path / "run"
    config, first = make_state(mesh, seed=1)
    _, second = make_state(mesh, seed=2)
    write_model_files(run, config, shared / "qwen2.5-tokenizer")
    write_model_files(run, config, run)
    store = StateStore(run / "checkpoints", keep=2)
    store.save(5, first, {})
    store.save(10, second, {})
    store.close()
    for source, state in ((run, second), (run / "checkpoints" / "5", first), (run / "checkpoints" / "10", second)):
        found_config, params = load(source)
        assert found_config == config
        assert_same(params, state.params)
        assert len(load_tokenizer(source)) == len(qwen_tokenizer)
    assert convert(run / "checkpoints" / "5", tmp_path / "hf", "--dtype", "bfloat16") == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert_same(load(tmp_path / "hf")[1], jax.tree.map(lambda x: x.astype(jnp.bfloat16), first.params))


def test_optimizer_state_is_not_read_for_a_model(tmp_path):
    config, state = make_state(mesh_of())
    write_model_files(tmp_path, config, None)
    noise = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    moments = jax.tree.map(lambda x: jnp.asarray(noise) if x.ndim == 2 else x, state.opt_state)
    store = StateStore(tmp_path / "checkpoints", keep=2)
    store.save(1, state._replace(opt_state=moments), {})
    store.close()
    before = int(Path("/proc/self/io").read_text().split()[1])
    load(tmp_path)
    num_read = int(Path("/proc/self/io").read_text().split()[1]) - before
    stored = sum(p.stat().st_size for p in (tmp_path / "checkpoints").rglob("*") if p.is_file())
    params = sum(x.nbytes for x in jax.tree.leaves(state.params))
    assert num_read < 8 * params < 1_000_000 < stored


def test_a_config_keeps_the_fields_it_came_with_only_if_it_is_the_same_model(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(), dtype="float32")
    config, _ = read_config(source)
    write_model_files(tmp_path / "a", config, source, "bfloat16")
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written == TINY | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    other = dataclasses.replace(config, rope_theta=5e5)
    write_model_files(tmp_path / "b", other, source, "float32")
    assert read_config(tmp_path / "b")[0] == other


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (dict(hidden_size=32.0), r"hidden_size is 32\.0: it must be a whole number"),
        (
            dict(vocab_size=None, head_dim=-8),
            "vocab_size is None: it must be a number; head_dim is -8: it must be positive",
        ),
        (dict(num_attention_heads=0), "num_attention_heads is 0: it must be positive"),
        (dict(num_key_value_heads="2"), "num_key_value_heads is '2': it must be a number"),
        (dict(num_hidden_layers=True), "num_hidden_layers is True: it must be a number"),
        (
            dict(max_position_embeddings=2**31),
            r"max_position_embeddings is 2147483648: it must be a whole number below 2\*\*31",
        ),
        (dict(rope_theta=-5), "rope_theta is -5: it must be positive"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps is nan: it must be positive and finite"),
        (
            dict(rope_parameters=YARN | {"rope_theta": float("inf")}),
            "rope_theta is inf: it must be positive and finite",
        ),
        (dict(rope_scaling=YARN | {"factor": 0}), "factor is 0: it must be positive"),
        (dict(rope_scaling=YARN | {"factor": None}), "yarn without a factor"),
        (
            dict(rope_scaling=YARN | {"original_max_position_embeddings": 0.5}),
            "embeddings is 0.5: it must be a whole number",
        ),
        (dict(rope_scaling=YARN | {"attention_factor": -1.0}), "attention_factor is -1.0: it must be positive"),
        (dict(rope_scaling="yarn"), "rope_parameters or rope_scaling is 'yarn': it must be an object"),
        (dict(head_dim=7), "head_dim is 7: it must be even"),
    ],
)
def test_a_number_that_no_model_can_have_is_named_with_its_field_and_file(tmp_path, changes, fault):
    (tmp_path / "config.json").write_text(json.dumps(TINY | changes))
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: .*{fault}"):
        read_config(tmp_path)


def test_numbers_that_may_be_left_out_may_be_null(tmp_path):
    optional = ("head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(TINY | dict.fromkeys(optional)))
    nulls = read_config(tmp_path)[0]
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in TINY.items() if k not in optional}))
    assert nulls == read_config(tmp_path)[0] and nulls.num_kv_heads == 4 and nulls.head_dim == 8


@pytest.mark.parametrize("text", ["{", "[]", "[" * 10**5, "\udcff"])
def test_a_broken_config_is_not_told_as_a_broken_tokenizer(tmp_path, text):
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json: ") as caught:
        load_tokenizer(tmp_path)
    assert "damaged" not in str(caught.value)


def test_the_hubs_refusal_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    monkeypatch.setattr(RepositoryNotFoundError, "__init__", OSError.__init__)  # whose arguments vary with the version
    for error, told in {
        RepositoryNotFoundError(
            "401\n\nRepository Not Found"
        ): "has no such model, or does not give it without a token",
        LocalEntryNotFoundError("An error happened\n..."): "could not be reached$",
        OSError("disk full\nat /x"): r"does not give it \(OSError: disk full\)$",
    }.items():
        monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
        with pytest.raises(
            ValueError, match=f"^there is no directory a/b in {Path.cwd()}, and the Hugging Face hub {told}"
        ):
            resolve_model("a/b")


def test_a_tokenizer_that_is_absent_or_broken_is_named(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(source)
    (source / "tokenizer.json").write_text('{"broken"')
    with pytest.raises(ValueError, match="cannot load the tokenizer"):
        load_tokenizer(source)
