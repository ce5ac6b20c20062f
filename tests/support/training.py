"""A tiny model, a few rows and a recipe for tests of training."""

import functools

import jax
import numpy as np

from s1jax.data.examples import Examples
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import abstract_params
from s1jax.runtime import sharding
from s1jax.runtime.sharding import MeshConfig, ShardingRules
from s1jax.train.optimizer import OptimizerConfig
from tests.support.models import random_params

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
