"""A tiny model, a few rows and a recipe for tests of training."""

import functools
from dataclasses import replace

import jax
import numpy as np

from s1jax.data.chat import ChatFormat
from s1jax.data.examples import DataConfig, Examples, encode_rows
from s1jax.data.packing import Packer
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params
from s1jax.runtime import sharding
from s1jax.runtime.sharding import MeshConfig, ShardingRules
from s1jax.train.optimizer import OptimizerConfig, make_optimizer
from s1jax.train.step import (
    StepConfig,
    abstract_state,
    init_state,
    make_train_step,
    to_device,
)
from tests.support.models import random_params
from tests.support.tokenizers import byte_tokenizer

ROW = {"id": "r", "question": "q", "thinking": "t", "answer": "a", "reference": "4", "source": "s", "domain": "d"}


def make_examples(lengths, num_prompt: int = 2) -> Examples:
    """Return examples of these lengths. Example i holds tokens 1000 i + 1, 1000 i + 2, ...; the first `num_prompt` have no loss."""
    return Examples(
        tokens=np.concatenate([1000 * i + 1 + np.arange(n) for i, n in enumerate(lengths)]).astype(np.int32),
        loss_mask=np.concatenate([np.arange(n) >= num_prompt for n in lengths]),
        offsets=np.cumsum([0, *lengths]),
        row_ids=tuple(str(i) for i in range(len(lengths))),
        pad=7,
        num_truncated=0,
    )


CONFIG = ModelConfig(
    vocab_size=272, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip


RULES = ShardingRules()


OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, clip_norm=0.5)


ROWS = [
    dict(id=str(i), question=f"What is {i} + {i + 3}?", thinking=f"{i} and {i + 3} make {2 * i + 3}." * (1 + i % 3),
         answer=str(2 * i + 3), reference=str(2 * i + 3), source="test", domain="sums")
    for i in range(20)
]  # fmt: skip


@functools.cache
def initial_params():
    """Return the initial parameters on the host. They are made on one local device, so that a test may replace `make_mesh`."""
    return jax.device_get(random_params(CONFIG, "stacked", sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])))


def params_on(mesh, dtype="float32"):
    """Return the initial parameters on a mesh, in the stacked layout."""
    target = abstract_params(CONFIG, RULES, "stacked", mesh, dtype)

    def place(x, leaf):
        # Copied, because a step donates its parameters.
        return jax.make_array_from_callback(x.shape, leaf.sharding, lambda index: np.array(x[index], leaf.dtype))

    return jax.tree.map(place, initial_params(), target)


# Unpacked: one example per row.
DATA = DataConfig(source="-", max_length=512, batch_size=8, num_epochs=2, pad_multiple=64, pack=False)


def make_packer(num_shards=1, **changes) -> Packer:
    """Return the batches of ROWS; `changes` are fields of DATA."""
    examples, _ = encode_rows(ROWS, ChatFormat.of(byte_tokenizer()), DATA)
    return Packer(examples, replace(DATA, **changes), num_shards)


def run_steps(
    num_steps=4,
    mesh_config=None,
    devices=None,
    gather=True,
    config=CONFIG,
    param_dtype="float32",
    batches=None,
    **step_fields,
):
    """Return the losses and gradient norms [num_steps, 2], and the parameters after the steps if `gather`.

    The mesh covers `devices`; by default, all eight, or the first if there is no `mesh_config`.
    """
    devices = jax.devices()[: 8 if mesh_config else 1] if devices is None else devices
    mesh = sharding.make_mesh(mesh_config or MeshConfig(fsdp=1), devices)
    packer = make_packer(mesh.shape["data"] * mesh.shape["fsdp"], **(batches or {}))
    optimizer = make_optimizer(OPTIMIZER, num_steps=6)
    step_config = StepConfig(**step_fields)
    offload = step_config.offload_optimizer
    params = params_on(mesh, param_dtype)
    state = init_state(optimizer, params, mesh, offload)
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, params, mesh, offload))
    step = make_train_step(config, RULES, optimizer, step_config, packer.config.pack, shardings=shardings)
    metrics = []
    with jax.set_mesh(mesh):
        for i in range(num_steps):
            state, m = step(state, {}, to_device(packer[i], mesh, RULES))
            metrics.append((float(m["loss"]), float(m["grad_norm"])))
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return np.array(metrics), jax.device_get(state.params) if gather else None


PACKED = dict(pack=True, pad_multiple=1, row_length=400)
