"""Pre-sharded checkpoints and training runs are models too."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.checkpoint.export import save_params, write_model_files
from s1jax.checkpoint.orbax import finished_steps
from s1jax.checkpoint.source import resolve_source
from s1jax.checkpoint.train_state import StateStore
from s1jax.model.qwen2 import abstract_params, init_params
from tests.support.checkpoints import (
    QWEN3,
    RULES,
    TINY,
    assert_same,
    convert,
    load,
    make_state,
    mesh_of,
    raw,
    tiny_tensors,
    write_checkpoint,
)

TWO_PROCESSES = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.experimental import multihost_utils
from s1jax.checkpoint import safetensors
from s1jax.checkpoint.export import save_hf, save_params, write_model_files
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model.qwen2 import init_params
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from s1jax.checkpoint.train_state import StateStore
from s1jax.runtime.processes import start_processes
start_processes()
source, out = sys.argv[1:]
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
    config, params = load_model(resolve_source(source), mesh, ShardingRules(), "stacked", param_dtype=None)
    held = 0
    for leaf in jax.tree.leaves(params):
        blocks = {str(shard.index): shard.data.nbytes for shard in leaf.addressable_shards}
        held += sum(blocks.values())
    assert num_read == held, (num_read, held)
    print("share", held / sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
save_hf(out + "/hf", config, params, None, None)
save_params(out + "/orbax", config, params, Path(source))
made = init_params(config, ShardingRules(), "stacked", columns, 5, part=lambda tree: tree["embed_tokens"])
np.save(f"{out}/made{jax.process_index()}", multihost_utils.process_allgather(made["weight"], tiled=True))
store = StateStore(out + "/run/checkpoints", keep=1)
store.save(1, {"params": params}, {"a": 1})
store.save(2, {"params": params}, {"a": 2})
store.close()
"""


@pytest.mark.integration
def test_each_of_two_processes_reads_only_what_its_devices_hold_and_they_save_together(tmp_path, processes):
    source = write_checkpoint(tmp_path / "in", tiny_tensors(dtype="BF16", bits=True))
    outputs = processes.run_two("-c", TWO_PROCESSES, source, tmp_path)
    for output in outputs:
        shares = [float(line.split()[1]) for line in output.splitlines() if line.startswith("share")]
        assert len(shares) == 3 and shares[0] < 0.6 and shares[1] < 0.6 and shares[2] == 1.0
    assert raw(tmp_path / "hf") == raw(source)
    assert finished_steps(tmp_path / "run" / "checkpoints") == [2]
    shutil.copy(source / "config.json", tmp_path / "run")
    expected = load(source)[1]
    assert_same(load(tmp_path / "orbax")[1], expected)
    assert_same(load(tmp_path / "run")[1], expected)
    config = resolve_source(source).model_config()
    drawn = init_params(config, RULES, "stacked", mesh_of(), 5, part=lambda tree: tree["embed_tokens"])["weight"]
    for process in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"made{process}.npy"), drawn)


@pytest.mark.integration
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_pre_sharded_checkpoint_is_the_same_on_any_mesh_and_in_either_layout(family, tmp_path):
    changes = QWEN3 if family == "qwen3" else {}
    tensors = tiny_tensors(False, "BF16", bits=True, family=family)
    source = write_checkpoint(tmp_path / "in", tensors, tie_word_embeddings=False, **changes)
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


@pytest.mark.integration
@pytest.mark.parametrize("changes", [{}, QWEN3], ids=["qwen2", "qwen3"])
def test_a_training_run_and_each_of_its_steps_is_a_model(changes, tmp_path, shared):
    mesh = mesh_of()
    run = tmp_path / "run"
    config, first = make_state(mesh, seed=1, **changes)
    _, second = make_state(mesh, seed=2, **changes)
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
        assert resolve_source(source).files == run and resolve_source(source).has_tokenizer
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
