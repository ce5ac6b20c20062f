"""Tiny checkpoints and train states of random numbers, and the comparison of trees bit for bit."""

import fnmatch
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import deserialize
from safetensors.numpy import save_file

from s1jax.checkpoint import safetensors
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params
from s1jax.runtime.files import ROOT
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

RULES = ShardingRules()


def mesh_of(data=1, fsdp=4, tensor=2):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


def load(source, layout="stacked", param_dtype=None, mesh=None):
    source = resolve_source(source)
    return load_model(source, mesh or mesh_of(), RULES, layout, dtype="float32", param_dtype=param_dtype)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
    assert jax.tree.structure(a) == jax.tree.structure(b)


class State(NamedTuple):
    params: dict
    opt_state: optax.OptState
    step: jax.Array


def make_state(mesh, seed=0, **changes):
    """A config, and a train state of random numbers on the mesh. `changes` are fields of a config.json."""
    config = ModelConfig.from_hf(TINY | changes, "float32")
    rng = np.random.default_rng(seed)
    target = abstract_params(config, RULES, "stacked", mesh)
    params = jax.tree.map(lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding), target)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.jit(lambda p: State(p, optimizer.init(p), jnp.int32(seed)))(params)
    return config, jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, replicated), state)


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


TINY = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    use_sliding_window=False,
    torch_dtype="float32",
    eos_token_id=[7, 9],
    bos_token_id=3,
)


# What a config.json of Qwen3 changes in TINY. As in Qwen3-0.6B, the heads together are wider than the model.
QWEN3 = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=16)


def tiny_tensors(tied=True, dtype="F32", seed=0, bits=False, family="qwen2"):
    """A checkpoint by its published names and shapes; with `bits`, of random bits: NaNs, infinities and subnormals too."""
    D, F, V, N, K, H = 32, 48, 64, 4, 2, 8 if family == "qwen2" else 16
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(3):
        layer = f"model.layers.{i}."
        shapes |= {layer + name + ".weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, width in (("q", N * H), ("k", K * H), ("v", K * H)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (width, D)
            if family == "qwen2":
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (width,)
        if family == "qwen3":
            shapes |= {f"{layer}self_attn.{name}_norm.weight": (H,) for name in "qk"}
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


def noise(seed, size=50_000):
    """A state of one array of random numbers."""
    return {"x": jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)}


class FakeHub:
    """Stands for the hub, with one model. Its branch gets a new commit each time it is asked for, so asking twice shows.

    `directories` are Hugging Face checkpoints, one per commit. Set `huggingface_hub.snapshot_download` to this object's method.
    """

    def __init__(self, root, directories):
        self.commits = {f"{i:040x}": directory for i, directory in enumerate(directories, 1)}
        self.root, self.calls, self.num_resolved = root, [], 0

    def snapshot_download(self, repo_id, revision=None, allow_patterns=(), ignore_patterns=()):
        self.calls.append((repo_id, revision, "*.safetensors" in allow_patterns))
        commit = revision
        if revision not in self.commits:
            commit = list(self.commits)[self.num_resolved]
            self.num_resolved += 1
        snapshot = self.root / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in Path(self.commits[commit]).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot)
        return str(snapshot)
