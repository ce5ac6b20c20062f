"""The cache as a ring: what is written, kept and moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from s1jax.model.cache import init_cache, resize, write
from s1jax.model.config import ModelConfig
from s1jax.ops.quantization import quantize
from s1jax.runtime.sharding import ShardingRules


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("num_written", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("capacity", [8, 2])
def test_a_resized_cache_holds_the_newest_and_writes_on_behind_them(capacity, num_written, num_rows, int8):
    config = ModelConfig(
        vocab_size=8, embed_dim=1, mlp_dim=1, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=1, rope_theta=1e4, rms_norm_eps=1e-6,
        max_position_embeddings=8, tie_word_embeddings=True, dtype="float32", int8=("cache",) if int8 else (),
    )  # fmt: skip
    cache = jax.jit(lambda: init_cache(config, num_rows, 4, ShardingRules()))()
    for i in range(num_written):
        slot, x = jnp.array(i % 4), jnp.full((num_rows, 1, 1, 1), i + 1.0)
        cache = cache._replace(
            k=tuple(write(k, quantize(x, (2,)) if int8 else x, slot, 3) for k in cache.k),
            v=tuple(write(v, quantize(x, (3,)) if int8 else x, slot, 2) for v in cache.v),
            positions=write(cache.positions, jnp.full((num_rows, 1), i), slot, 1),
            segment_ids=write(cache.segment_ids, jnp.ones((num_rows, 1), jnp.int32), slot, 1),
            num_written=jnp.array(i + 1),
        )
    resized = resize(cache, capacity, ShardingRules())
    room = min(capacity, 4)
    assert all(x.is_deleted() for x in jax.tree.leaves((cache.k, cache.v)))
    assert resized.capacity == capacity and int(resized.num_written) == room
    kept = [i for i in range(num_written) if i >= num_written - room]
    wanted = [i + 1 for i in kept]
    for row in range(num_rows):
        held = np.flatnonzero(resized.segment_ids[row])
        assert resized.positions[row, held].tolist() == kept and (held < room).all()
        for k, v in zip(resized.k, resized.v, strict=True):
            k, v = (x.qvalue * x.scale if int8 else x for x in (k, v))
            assert (
                k[row, 0, 0, held].tolist()
                == v[row, 0, held, 0].tolist()
                == pytest.approx(wanted, rel=0.005 if int8 else 0)
            )
