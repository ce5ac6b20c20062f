"""The decoder of Qwen2.5 and dense Qwen3: token ids, positions and segments -> hidden states, logits and a key/value cache.

The families differ in attention alone: `qwen2` has biases on q, k and v, `qwen3` has RMS norms on the heads of q and k.

The NNX modules hold the parameters under Hugging Face's submodule names. Jitted functions take the parameters as a plain nested dict
(`abstract_params`, `init_params`) and merge them with `graphdef(...)`. Layers have one of two layouts. `stacked`: arrays [L, ...], run by
`jax.lax.scan`, for training. `per_layer`: one array per layer, run by a Python loop, for decoding, where slicing a stack would copy the
weights in every step. Softmax, norms, rotations and logits are float32 for every compute dtype.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from s1jax.model.cache import KVCache, write
from s1jax.model.config import LoraConfig, ModelConfig
from s1jax.model.params import ParamFactory, create
from s1jax.model.storage import storage_dtype
from s1jax.ops.attention import Backend, attention_over_caches, self_attention
from s1jax.ops.bits import take_layer
from s1jax.ops.blocked_attention import saves_attention
from s1jax.ops.embedding import embed
from s1jax.ops.keys_values import KeysValues
from s1jax.ops.matmul import matmul, stored_matmul
from s1jax.ops.quantization import Quantized, nf4_shapes, quantize
from s1jax.ops.rope import Rotation, apply_rope, rotation_at
from s1jax.runtime.errors import UserError
from s1jax.runtime.sharding import ShardingRules, constrain, sharding_for

Params = dict[str, Any]
Layout = Literal["stacked", "per_layer"]
Remat = Literal["none", "dots", "attention", "full"]
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, saves_attention
    ),
    "attention": saves_attention,
    "full": None,
}
"""What each remat policy except `none` saves per layer, in addition to the layer's input; see `Qwen2.__call__`."""


class Projection(nnx.Module):
    """A linear map with a kernel [*O, *I], where I are the last `num_in` dimensions, an optional bias [*O] and an optional adapter."""

    lora_a: nnx.Param | None = None
    lora_b: nnx.Param | None = None

    def __init__(
        self,
        param: ParamFactory,
        shape: tuple[int, ...],
        names: tuple[str | None, ...],
        config: ModelConfig,
        num_in: int = 1,
        has_bias: bool = False,
    ):
        self.num_in, self.dtype, self.shape, self.names = num_in, config.dtype, shape, names
        kernel_shape, scale_shape, scale_names = shape, shape[:-num_in], names[:-num_in]
        if config.nf4:
            (kernel_shape, scale_shape), scale_names = nf4_shapes(shape), names
        self.kernel = param(kernel_shape, names)
        is_stored = config.nf4 or "weights" in config.int8
        self.scale = param(scale_shape, scale_names, scale=None) if is_stored else None
        self.bias = param(shape[:-num_in], names[:-num_in], scale=0) if has_bias else None

    def add_adapter(self, param: ParamFactory, lora: LoraConfig) -> None:
        """Add A, normal with the variance of PEFT's uniform distribution, and B = 0."""
        outer, inner = self.shape[: -self.num_in], self.shape[-self.num_in :]
        outer_names, inner_names = self.names[: -self.num_in], self.names[-self.num_in :]
        self.lora_scale = lora.scale
        self.lora_a = param((lora.rank, *inner), (None, *inner_names), scale=(3 * math.prod(inner)) ** -0.5)
        self.lora_b = param((*outer, lora.rank), (*outer_names, None), scale=0)

    def __call__(self, x: Float[Array, "B T *I"]) -> Float[Array, "B T *O"]:
        """Apply the map in the compute dtype."""
        x = x.reshape(*x.shape[:2], -1).astype(self.dtype)
        if self.scale is None:
            kernel = self.kernel[...]
            y = matmul(x, kernel.reshape(*kernel.shape[: -self.num_in], -1), dtype=self.dtype)
        else:
            y = stored_matmul(x, self.kernel[...], self.scale[...], self.num_in)
        if self.lora_a is not None and self.lora_b is not None:
            a = self.lora_a[...]
            low = matmul(x, a.reshape(len(a), -1), None, self.dtype)
            y = y + (self.lora_scale * matmul(low, self.lora_b[...], None, jnp.float32)).astype(self.dtype)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last dimension (arXiv 1910.07467), in float32."""

    def __init__(self, param: ParamFactory, dim: int, eps: float):
        self.eps = eps
        self.weight = param((dim,), (None,), scale=None)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalise; the output has the dtype of `x`."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.weight[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention with biases on q, k and v (Qwen2) or norms on q and k before their rotation (Qwen3)."""

    def __init__(self, config: ModelConfig, rules: ShardingRules, param: ParamFactory):
        self.rules = rules
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        heads, kv_heads = ("heads", None, "embed"), ("kv_heads", None, "embed")
        has_bias, self.has_norms = config.family == "qwen2", config.family == "qwen3"
        self.q_proj = Projection(param, (N, H, D), heads, config, has_bias=has_bias)
        self.k_proj = Projection(param, (K, H, D), kv_heads, config, has_bias=has_bias)
        self.v_proj = Projection(param, (K, H, D), kv_heads, config, has_bias=has_bias)
        self.o_proj = Projection(param, (D, N, H), ("embed", "heads", None), config, num_in=2)
        if self.has_norms:
            self.q_norm = RMSNorm(param, H, config.rms_norm_eps)
            self.k_norm = RMSNorm(param, H, config.rms_norm_eps)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotation: Rotation,
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        cache: KeysValues | None = None,
        slot: Int[Array, ""] | None = None,
        prefixes: Sequence[KeysValues] = (),
        prefix_end: Int[Array, " B"] | None = None,
        backend: Backend | None = None,
        packed: bool = True,
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        """Return the output and, if there is a `cache`, this layer's cache with the new keys and values written from `slot` on.

        The positions and segment ids of `cache` already include the new tokens.
        """
        q, k = self.q_proj(x), self.k_proj(x)
        if self.has_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, rotation), apply_rope(k, rotation).transpose(0, 2, 3, 1)
        v = self.v_proj(x).swapaxes(1, 2)
        if cache is None or slot is None:
            return self.o_proj(self_attention(q, k, v, positions, segment_ids, backend, packed, self.rules)), None
        new_k, new_v = (quantize(k, (2,)), quantize(v, (3,))) if isinstance(cache.k, Quantized) else (k, v)
        cache = cache._replace(k=write(cache.k, new_k, slot, axis=3), v=write(cache.v, new_v, slot, axis=2))
        y = attention_over_caches(q, positions, segment_ids, cache, prefixes, prefix_end, backend, self.rules)
        return self.o_proj(y), cache


class MLP(nnx.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, param: ParamFactory):
        D, F = config.embed_dim, config.mlp_dim
        self.gate_proj = Projection(param, (F, D), ("mlp", "embed"), config)
        self.up_proj = Projection(param, (F, D), ("mlp", "embed"), config)
        self.down_proj = Projection(param, (D, F), ("embed", "mlp"), config)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return down(silu(gate(x)) * up(x))."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """One decoder layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, rules: ShardingRules, param: ParamFactory):
        self.rules = rules
        self.input_layernorm = RMSNorm(param, config.embed_dim, config.rms_norm_eps)
        self.self_attn = Attention(config, rules, param)
        self.post_attention_layernorm = RMSNorm(param, config.embed_dim, config.rms_norm_eps)
        self.mlp = MLP(config, param)
        for path, module in nnx.iter_modules(self):
            if config.lora is not None and isinstance(module, Projection) and path[-1] in config.lora.targets:
                module.add_adapter(param, config.lora)

    def __call__(
        self, x: Float[Array, "B T D"], *args: Any, **kwargs: Any
    ) -> tuple[Float[Array, "B T D"], KeysValues | None]:
        """Return the layer's output and its new cache. The other arguments are those of `Attention`."""
        attended, cache = self.self_attn(self.input_layernorm(x), *args, **kwargs)
        x = constrain(x + attended, self.rules, "batch", "length", None)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, self.rules, "batch", "length", None), cache


class Embedding(nnx.Module):
    """The token table."""

    def __init__(self, config: ModelConfig, rules: ShardingRules, param: ParamFactory):
        self.dtype, self.rules = config.dtype, rules
        self.weight = param((config.vocab_size, config.embed_dim), ("vocab", "embed"))
        self.scale = param((config.vocab_size,), ("vocab",), scale=None) if "weights" in config.int8 else None

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Return the tokens' rows in the compute dtype."""
        x = embed(self.weight[...], tokens, self.rules, self.dtype)
        if self.scale is None:
            return x
        return (x * self.scale[...].at[tokens].get(mode="clip")[:, :, None]).astype(self.dtype)


class Qwen2(nnx.Module):
    """The whole decoder. `layout` says whether its layers are one stack or one module each."""

    def __init__(self, config: ModelConfig, rules: ShardingRules, layout: Layout):
        self.config, self.rules, self.layout = config, rules, layout
        param = ParamFactory()
        self.embed_tokens = Embedding(config, rules, param)
        self.layers: Any
        if layout == "stacked":
            self.layers = Block(config, rules, ParamFactory(config.num_layers, param.draws))
        else:
            self.layers = nnx.List([Block(config, rules, param) for _ in range(config.num_layers)])
        self.norm = RMSNorm(param, config.embed_dim, config.rms_norm_eps)
        head = (config.vocab_size, config.embed_dim), ("vocab", "embed"), dataclasses.replace(config, nf4=False)
        self.lm_head = None if config.tie_word_embeddings else Projection(param, *head)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        cache: KVCache | None = None,
        prefixes: Sequence[KVCache] = (),
        prefix_end: Int[Array, " B"] | None = None,
        remat: Remat = "none",
        attention: Backend | None = None,
        packed: bool = True,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return the final hidden states and, if a cache is given, the cache with these T tokens appended.

        `prefixes` are caches of earlier tokens, which consecutive rows share and read in place up to their `prefix_end` (exclusive).
        `attention` is the backend; see `ops/attention.py` for all of these. A cache needs the per-layer layout: UserError otherwise.

        `remat` (stacked layout only) says what the forward pass saves per layer. The backward pass recomputes the rest. The numbers saved
        per token and layer are:
        `none`: everything that the backward pass needs.
        `dots`: D for the layer's input, (N + 2 K) H + 2 F + 2 D for products with weights, and the result of attention as below.
        `attention`: D for the layer's input, N H for the result of attention and N float32 of its softmax.
        `full`: D for the layer's input.
        """
        x = constrain(self.embed_tokens(tokens), self.rules, "batch", "length", None)
        rotation = rotation_at(positions, self.config.head_dim, self.config.rope_theta, self.config.yarn)
        if self.layout == "stacked":
            if cache is not None:
                raise UserError("a cache needs the per-layer layout: unstack the parameters first")
            x = self._scan_layers(x, rotation, positions, segment_ids, remat, attention, packed)
        else:
            x, cache = self._walk_layers(
                x, rotation, positions, segment_ids, cache, prefixes, prefix_end, attention, packed
            )
        return self.norm(x), cache

    def _scan_layers(self, x, rotation, positions, segment_ids, remat, backend, packed):
        block, stack = nnx.split(self.layers)

        def step(x, layer):
            y, _ = nnx.merge(block, layer)(x, rotation, positions, segment_ids, backend=backend, packed=packed)
            return y, None

        if remat != "none":
            # prevent_cse=False: in a scan, the compiler cannot merge the recomputation with the forward pass.
            step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
        return jax.lax.scan(step, x, stack)[0]

    def _walk_layers(self, x, rotation, positions, segment_ids, cache, prefixes, prefix_end, backend, packed):
        if cache is None:
            for layer in self.layers:
                x, _ = layer(x, rotation, positions, segment_ids, backend=backend, packed=packed)
            return x, None
        slot = cache.num_written % cache.capacity
        cache = cache._replace(
            positions=write(cache.positions, positions, slot, axis=1),
            segment_ids=write(cache.segment_ids, segment_ids, slot, axis=1),
        )
        layers = []
        for i, layer in enumerate(self.layers):
            layer_prefixes = [prefix.layer(i) for prefix in prefixes]
            x, new = layer(
                x, rotation, positions, segment_ids, cache.layer(i), slot, layer_prefixes, prefix_end, backend=backend
            )
            layers.append(new)
        return x, cache._replace(
            k=tuple(layer.k for layer in layers),
            v=tuple(layer.v for layer in layers),
            num_written=cache.num_written + positions.shape[1],
        )

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Return float32 logits of the hidden states."""
        weight, scale = self._output_layer()
        return matmul(hidden, weight, scale, jnp.float32)

    def output_weight(self) -> Float[Array, "V D"]:
        """Return the weight of the output layer, for `cross_entropy.py`."""
        weight, scale = self._output_layer()
        return weight if scale is None else (weight * scale[:, None]).astype(self.config.dtype)

    def _output_layer(self) -> tuple[jax.Array, jax.Array | None]:
        if self.lm_head is None:
            weight, scale = self.embed_tokens.weight, self.embed_tokens.scale
        else:
            weight, scale = self.lm_head.kernel, self.lm_head.scale
        return weight[...], None if scale is None else scale[...]


@functools.lru_cache(maxsize=16)
def _abstract(config: ModelConfig, rules: ShardingRules, layout: Layout):
    graph, state = nnx.split(nnx.eval_shape(lambda: Qwen2(config, rules, layout)))

    def metadata(key: str) -> Any:
        return unflatten_dict({path: param.get_metadata()[key] for path, param in nnx.to_flat_state(state)})

    return graph, nnx.to_pure_dict(state), metadata("names"), metadata("initial")


def graphdef(config: ModelConfig, rules: ShardingRules, layout: Layout):
    """Return the static half of the model: `nnx.merge(graphdef(...), params)` is the model inside a jitted function."""
    return _abstract(config, rules, layout)[0]


def abstract_params(
    config: ModelConfig, rules: ShardingRules, layout: Layout, mesh: jax.sharding.Mesh, dtype: str = "float32"
) -> Params:
    """Return the parameter tree as `jax.ShapeDtypeStruct`s with their shardings; nothing is allocated."""
    _, shapes, names, _ = _abstract(config, rules, layout)

    def leaf(path, shape, dims):
        kind = storage_dtype(path, config) or dtype
        return jax.ShapeDtypeStruct(shape.shape, kind, sharding=sharding_for(mesh, rules, dims, shape.shape))

    return jax.tree_util.tree_map_with_path(leaf, shapes, names, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct))


def constrain_params(params: Params, config: ModelConfig, rules: ShardingRules) -> Params:
    """Pin stacked parameters, a part of their tree, or arrays of their shapes, to their sharding on the mesh of `jax.set_mesh`."""
    names = flatten_dict(_abstract(config, rules, "stacked")[2])
    return unflatten_dict({path: constrain(x, rules, *names[path]) for path, x in flatten_dict(params).items()})


def init_params(
    config: ModelConfig,
    rules: ShardingRules,
    layout: Layout,
    mesh: jax.sharding.Mesh,
    seed: int,
    dtype: str = "float32",
    part: Callable[[Params], Params] = lambda tree: tree,
) -> Params:
    """Return random parameters, created in place on the devices that hold them. `part` selects from their tree what to create."""
    target = part(abstract_params(config, rules, layout, mesh, dtype))
    return create(target, part(_abstract(config, rules, layout)[3]), seed)


def unstack(params: Params, num_layers: int, target: Params | None = None, donate: bool = False) -> Params:
    """Return stacked parameters in the per-layer layout, on the shardings of an abstract `target`. `donate` deletes stack by stack."""
    stacks, tree = jax.tree.flatten(params["layers"])
    shardings = [x.sharding for x in jax.tree.leaves(target["layers"][0])] if target else [None] * len(stacks)
    layers: list[list[jax.Array]] = [[] for _ in range(num_layers)]
    for stack, sharding in zip(stacks, shardings, strict=True):
        for i, leaves in enumerate(layers):
            leaves.append(take_layer(stack, i, sharding))
        if donate:
            jax.block_until_ready(layers)
            stack.delete()
    return params | {"layers": {i: jax.tree.unflatten(tree, leaves) for i, leaves in enumerate(layers)}}
