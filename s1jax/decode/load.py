"""A model on disk -> an engine that is ready to decode, and the model's chat format."""

from __future__ import annotations

import logging
import math
from functools import partial

import jax

from s1jax.checkpoint.source import Source, load_model, load_tokenizer
from s1jax.data.chat import ChatFormat
from s1jax.decode.engine import Engine
from s1jax.decode.loaded import place_model
from s1jax.model.storage import Storage, with_int8
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.precision import Int8
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig, ShardingRules, make_mesh, share_out

logger = logging.getLogger(__name__)


def load_engine(
    source: Source,
    dtype: str = "bfloat16",
    mesh: MeshConfig = DECODING_MESH,
    rules: ShardingRules | None = None,
    int8: tuple[Int8, ...] = (),
    attention: CacheBackend | None = None,
    num_rows: int = 8,
) -> tuple[Engine, ChatFormat]:
    """Load a model onto a mesh. Return an engine that decodes with it, and the format that encodes its prompts.

    `dtype` is the dtype of weights and computation, `int8` says what is stored in 8 bits instead, and `attention` is the backend of
    attention over caches (None: the default of the hardware). In `mesh`, `data` and `tensor` may both be -1: `share_out` divides the
    devices. `num_rows` is the number of rows for `Engine.submit`; streams choose their own.
    Raises UserError if the tokenizer lacks the delimiters or does not belong to the model.
    """
    rules = rules or ShardingRules()
    num_kv_heads = source.model_config(dtype).num_kv_heads
    chat = ChatFormat.of(load_tokenizer(source))
    device_mesh = make_mesh(share_out(mesh, num_kv_heads, jax.device_count()))
    if num_kv_heads % (tensor := device_mesh.shape["tensor"]) and is_first_process():
        logger.warning(
            f"tensor {tensor} does not divide the {num_kv_heads} key/value heads of {source.name}, so every device holds all caches. "
            f"With tensor {math.gcd(num_kv_heads, tensor)}, and data for the other devices, the caches would be split"
        )
    store: Storage | None = "int8" if "weights" in int8 else None
    config, params = load_model(source, device_mesh, rules, "per_layer", dtype=dtype, param_dtype=dtype, store=store)
    config = with_int8(config, int8)
    to_text = partial(chat.decode, skip_special_tokens=True)
    placed = place_model(config, params, rules, device_mesh, chat.delimiters, chat.newline_ids, attention, to_text)
    return Engine(placed, num_rows), chat
