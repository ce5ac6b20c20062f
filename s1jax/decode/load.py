"""A model's name -> an engine ready to decode, with its tokenizer."""

from __future__ import annotations

import logging
import math
from typing import Any

import jax

from s1jax.data.chat import find_delimiters, newline_ids
from s1jax.decode.engine import Decoder
from s1jax.model.storage import Storage, with_int8
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.precision import Int8
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig, ShardingRules, make_mesh, share_out

logger = logging.getLogger(__name__)


def load_decoder(
    model: str,
    dtype: str = "bfloat16",
    mesh: MeshConfig = DECODING_MESH,
    rules: ShardingRules | None = None,
    int8: tuple[Int8, ...] = (),
    attention: CacheBackend | None = None,
) -> tuple[Decoder, Any]:
    """Return a model (Hugging Face directory or hub id, or our own checkpoint) ready to decode, and its tokenizer.

    Of the mesh `data` and `tensor` may both be -1 (`sharding.share_out`).
    Raises UserError for a tokenizer that lacks the delimiters, or that does not belong to the model.
    """
    # Here, so that decoding itself needs no more than jax, flax and numpy.
    from s1jax.checkpoint.source import load_model, load_tokenizer, read_config

    rules = rules or ShardingRules()
    num_kv_heads = read_config(model, dtype)[0].num_kv_heads
    tokenizer = load_tokenizer(model)
    delimiters = find_delimiters(tokenizer)
    device_mesh = make_mesh(share_out(mesh, num_kv_heads, jax.device_count()))
    if num_kv_heads % (tensor := device_mesh.shape["tensor"]) and is_first_process():
        logger.warning(
            "tensor %d does not divide the %d key/value heads of %s, so every device holds all caches; tensor %d splits them, "
            "with data for the other devices",
            tensor,
            num_kv_heads,
            model,
            math.gcd(num_kv_heads, tensor),
        )
    store: Storage | None = "int8" if "weights" in int8 else None
    config, params = load_model(model, device_mesh, rules, "per_layer", dtype=dtype, param_dtype=dtype, store=store)
    config = with_int8(config, int8)
    return Decoder(config, params, rules, device_mesh, delimiters, newline_ids(tokenizer), attention), tokenizer
