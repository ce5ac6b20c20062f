"""What the tests of the model share: the published configs, and logits of whole sequences."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from s1jax.model.config import SIZES, ModelConfig
from s1jax.model.qwen2 import abstract_params, graphdef
from s1jax.model.storage import quantize_matrices
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh

RULES = ShardingRules()
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def published(size: str, **changes) -> dict:
    """The published config.json of a size, with changes."""
    hidden, mlp, layers, heads, kv_heads, tied, vocabulary = SIZES[size]
    of_family = {
        "architectures": ["Qwen2ForCausalLM"],
        "max_position_embeddings": 32768,
        "max_window_layers": layers if tied else 70,
        "model_type": "qwen2",
        "sliding_window": 32768 if tied else 131072,
    }
    if size.startswith("Qwen3-"):
        of_family = {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "max_window_layers": layers,
            "model_type": "qwen3",
            "rope_scaling": None,
            "sliding_window": None,
        }
    return {
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
        **of_family,
        **changes,
    }


def full_logits(config: ModelConfig, layout: str, params, tokens, positions=None, segment_ids=None):
    """Return logits [B, T, V] of whole sequences; by default, each is one segment that starts at 0."""
    tokens = jnp.asarray(tokens)
    positions = (
        jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else jnp.asarray(positions)
    )
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids)
    model = nnx.merge(graphdef(config, RULES, layout), params)
    return model.logits(model(tokens, positions, segment_ids)[0])


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def random_params(config: ModelConfig, layout: str, mesh, seed: int = 0):
    """What `init_params` gives for a plain model, of numpy's random numbers: programs that make them take seconds to compile."""
    assert config.lora is None and not config.int8 and not config.nf4
    rng = np.random.default_rng(seed)

    def leaf(path, target):
        module, name = (key.key for key in path[-2:])
        if name == "bias" or "norm" in module:
            value = np.full(target.shape, 0 if name == "bias" else 1)
        else:
            value = 0.02 * rng.standard_normal(target.shape)
        return jax.device_put(value.astype(target.dtype), target.sharding)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config, RULES, layout, mesh))


def in_nf4(config: ModelConfig, params):
    """The model with its layers' projections stored in 4 bits; parameters of either layout, which are given up."""
    return dataclasses.replace(config, nf4=True), quantize_matrices(params, "nf4")


def in_int8(config: ModelConfig, params, parts=("weights",)):
    """The model with these parts stored in 8 bits; parameters of either layout, which are given up if they are among them."""
    params = quantize_matrices(params, "int8") if "weights" in parts else params
    return dataclasses.replace(config, int8=tuple(parts)), params


def random_tokens(config: ModelConfig, shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy().astype(np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
