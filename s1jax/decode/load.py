"""A model's name -> an engine that is ready to decode, and its tokenizer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import jax

from s1jax.checkpoint.source import load_model, load_tokenizer, read_config
from s1jax.data.chat import find_delimiters, newline_ids
from s1jax.decode.engine import Engine
from s1jax.decode.loaded import place_model
from s1jax.model.storage import Storage, with_int8
from s1jax.ops.attention import CacheBackend
from s1jax.runtime.precision import Int8
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.sharding import DECODING_MESH, MeshConfig, ShardingRules, make_mesh, share_out


def load_engine(
    model: str,
    dtype: str = "bfloat16",
    mesh: MeshConfig = DECODING_MESH,
    rules: ShardingRules | None = None,
    int8: tuple[Int8, ...] = (),
    attention: CacheBackend | None = None,
    num_rows: int = 8,
) -> tuple[Engine, Any]:
    """Load a model (Hugging Face directory or hub id, or our own checkpoint); return its engine and its tokenizer.

    The sizes `data` and `tensor` of the mesh may both be -1 (`sharding.share_out`). `num_rows` is for `Engine.submit`; streams choose their
    own. Raises UserError for a tokenizer that lacks the delimiters, or that does not belong to the model.
    """
    rules = rules or ShardingRules()
    num_kv_heads = read_config(model, dtype)[0].num_kv_heads
    tokenizer = load_tokenizer(model)
    delimiters = find_delimiters(tokenizer)
    device_mesh = make_mesh(share_out(mesh, num_kv_heads, jax.device_count()))
    if num_kv_heads % (tensor := device_mesh.shape["tensor"]) and is_first_process():
        print(
            f"tensor {tensor} does not divide the {num_kv_heads} key/value heads of {model}: every device holds all caches; "
            f"tensor {math.gcd(num_kv_heads, tensor)}, and data for the other devices, would split them",
            file=sys.stderr,
        )
    store: Storage | None = "int8" if "weights" in int8 else None
    config, params = load_model(model, device_mesh, rules, "per_layer", dtype=dtype, param_dtype=dtype, store=store)
    config = with_int8(config, int8)

    def to_text(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    newline = newline_ids(tokenizer)
    placed = place_model(config, params, rules, device_mesh, delimiters, newline, attention, to_text)
    return Engine(placed, num_rows), tokenizer
