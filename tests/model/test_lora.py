"""Low-rank fine-tuning: what a step computes is what it would with merged weights, and it makes none of those nor their gradients."""

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.peft import to_peft
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model.config import PROJECTIONS, LoraConfig, ModelConfig
from s1jax.model.lora import Merged, combine, init_adapters, merge, split
from s1jax.model.qwen2 import abstract_params, graphdef
from s1jax.ops.quantization import dequantize
from s1jax.runtime.sharding import MeshConfig, make_mesh
from tests.support import models
from tests.support.models import RULES, in_int8, in_nf4, one_device, random_tokens

pytestmark = pytest.mark.usefixtures("quick_compilation")

LORA = LoraConfig(rank=3, alpha=6.0)
BASE = ModelConfig(
    vocab_size=264, embed_dim=32, mlp_dim=96, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip
CONFIG = dataclasses.replace(BASE, lora=LORA)
TOKENS = random_tokens(BASE, (2, 7))


def numbers(target, seed, size):
    """A tree of random matrices, and of vectors of ones, on the shardings of `target`; quicker than `init_params`."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        value = size * rng.standard_normal(x.shape) if x.ndim > 2 or 264 in x.shape else np.ones(x.shape)
        return jax.device_put(jnp.asarray(value, x.dtype), x.sharding)

    return jax.tree.map(leaf, target)


def base(mesh=None, dtype="float32"):
    """Weights larger than at initialisation, so that every part of the model counts."""
    return numbers(abstract_params(BASE, RULES, "stacked", mesh or one_device(), dtype), 0, 0.1)


@functools.cache
def _quantized(kind):
    store = in_nf4 if kind == "nf4" else in_int8
    return store(BASE, base())


def prepared(kind, mesh=None):
    """The config with adapters, and a base stored as `kind` says."""
    if kind is None:
        return CONFIG, base(mesh)
    stored, params = _quantized(kind)
    target = abstract_params(stored, RULES, "stacked", mesh or one_device())
    return dataclasses.replace(stored, lora=LORA), jax.device_put(params, jax.tree.map(lambda x: x.sharding, target))


def abstract_adapters(config, mesh):
    return split(abstract_params(config, RULES, "stacked", mesh))[1]


def random_adapters(config=CONFIG, mesh=None):
    """Adapters as they might be after training: B is not zero."""
    return numbers(abstract_adapters(config, mesh or one_device()), 1, 0.1)


def merged_arrays(config, params, adapters, mesh=None, dtype="float32"):
    """The merged model. The given arrays stay as they are, because copies of them are given up."""
    params, adapters = jax.tree.map(jnp.copy, (params, adapters))
    plain, lazy = merge(config, RULES, mesh or one_device(), params, adapters, dtype)
    return plain, jax.tree.map(lambda leaf: leaf.compute(), lazy, is_leaf=lambda x: isinstance(x, Merged))


full_logits = jax.jit(models.full_logits, static_argnums=(0, 1))


def loss_of(config, params, tokens, remat="full"):
    model = nnx.merge(graphdef(config, RULES, "stacked"), params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    tokens = jnp.asarray(tokens)
    hidden, _ = model(tokens, positions, jnp.ones_like(tokens), remat=remat)
    losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden)[:, :-1], tokens[:, 1:])
    return losses.mean()


def by_hand(params, adapters, scale):
    """Stacked parameters with every kernel as PEFT's formula has it on matrices: W + alpha / r * B @ A."""

    def add(kernel, a, b):
        return kernel + (scale * b.reshape(-1, b.shape[-1]) @ a.reshape(len(a), -1)).reshape(kernel.shape)

    def walk(node, added):
        if "lora_a" in added:
            return node | {"kernel": jax.vmap(add)(node["kernel"], added["lora_a"], added["lora_b"])}
        return {k: walk(v, added[k]) if k in added else v for k, v in node.items()}

    return walk(params, adapters)


def floats(tree):
    """Stacked parameters with every stored matrix as the floats it stands for."""
    if not isinstance(tree, dict):
        return tree
    matrix = "kernel" if "kernel" in tree else "weight"
    if "scale" in tree:
        tree = {k: v for k, v in tree.items() if k != "scale"} | {matrix: dequantize(tree[matrix], tree["scale"])}
    return {key: floats(value) for key, value in tree.items()}


def assert_same(ours, wanted, atol):
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=atol), ours, wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rank": 0}, "rank is 0"), ({"alpha": 0.0}, "alpha is 0"), ({"targets": ("lm_head",)}, "lm_head"), ({"targets": ()}, "targets")],
)  # fmt: skip
def test_adapters_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**changes)


@pytest.mark.integration
@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "down_proj")])
def test_there_are_two_small_float32_matrices_for_each_target_and_layer(targets):
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(LORA, targets=targets), dtype="bfloat16")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    adapters, target = init_adapters(config, RULES, mesh, 0), abstract_adapters(config, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), adapters) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), target
    )
    owners = Counter(path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(adapters))
    assert owners == dict.fromkeys(targets, 2)
    q = adapters["layers"]["self_attn"]["q_proj"]
    assert q["lora_a"].shape == (3, 3, 32) and q["lora_b"].shape == (3, 4, 8, 3) and q["lora_a"].dtype == jnp.float32
    assert not q["lora_a"].sharding.is_fully_replicated and not q["lora_b"].sharding.is_fully_replicated
    assert q["lora_a"].std() == pytest.approx((3 * 32) ** -0.5, rel=0.2) and not q["lora_b"].any()


def test_a_tree_is_combined_and_split_without_loss():
    params, adapters = base(), random_adapters()
    whole = combine(params, adapters)
    wanted = abstract_params(CONFIG, RULES, "stacked", one_device())
    assert jax.tree.structure(whole) == jax.tree.structure(wanted)
    again = split(whole)
    jax.tree.map(lambda x, y: x is y or pytest.fail("copied"), again, (params, adapters))


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_step_zero_the_model_is_the_base_exactly(dtype):
    config, plain = (dataclasses.replace(c, dtype=dtype) for c in (CONFIG, BASE))
    params = base(dtype=dtype)
    adapted = combine(params, init_adapters(config, RULES, one_device(), 0))
    assert (full_logits(config, "stacked", adapted, TOKENS) == full_logits(plain, "stacked", params, TOKENS)).all()


@pytest.mark.integration
@pytest.mark.parametrize("kind", [pytest.param(None, marks=pytest.mark.slow), "nf4"])
def test_steps_are_those_of_merged_weights_and_change_nothing_of_the_base(kind):
    config, params = prepared(kind)
    before = jax.tree.map(np.array, params)
    plain = floats(params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

    def ours(adapters):
        return loss_of(config, combine(params, adapters), TOKENS)

    def wanted(adapters):
        return loss_of(BASE, by_hand(plain, adapters, LORA.scale), TOKENS)

    def run(loss_fn):
        def step(carry, _):
            adapters, state = carry
            loss, grads = jax.value_and_grad(loss_fn)(adapters)
            updates, state = optimizer.update(grads, state, adapters)
            return (optax.apply_updates(adapters, updates), state), (loss, grads)

        adapters = random_adapters()
        initial = adapters, optimizer.init(adapters)
        (adapters, _), (losses, grads) = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4))(initial)
        return losses, jax.tree.map(lambda x: x[0], grads), adapters

    losses, grads, adapters = run(ours)
    wanted_losses, wanted_grads, wanted_adapters = run(wanted)
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_allclose(losses, wanted_losses, atol=1e-5)
    assert_same(grads, wanted_grads, 1e-5)
    # Adam divides by the gradient's size, and with it magnifies the rounding of those near zero.
    difference = jnp.concatenate(
        [abs(x - y).ravel() for x, y in zip(*map(jax.tree.leaves, (adapters, wanted_adapters)), strict=True)]
    )
    assert jnp.quantile(difference, 0.99) < 1e-5 and difference.max() < 1e-3
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, before)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_gradients_are_those_of_merged_weights_without_rematerialisation_too(kind):
    config, params = prepared(kind)
    adapters, plain = random_adapters(), floats(params)
    wanted = jax.jit(jax.grad(lambda a: loss_of(BASE, by_hand(plain, a, LORA.scale), TOKENS)))(adapters)
    ours = jax.jit(jax.grad(lambda a: loss_of(config, combine(params, a), TOKENS, remat="none")))(adapters)
    assert_same(ours, wanted, 1e-5)


def products(jaxpr, sizes):
    """Add up the sizes of all products in a program, those inside loops and calls included."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            sizes.append(tuple(eqn.outvars[0].aval.shape))
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            products(inner, sizes)
    return sizes


@pytest.mark.integration
def test_a_step_multiplies_out_no_weight_and_no_gradient_of_one():
    tokens = random_tokens(BASE, (2, 5))
    params, adapters = base(), random_adapters()
    kernels = {x.shape[1:] for x in jax.tree.leaves(params["layers"]) if x.ndim > 2}
    kernels |= {tuple(sorted((int(np.prod(s[:i])), int(np.prod(s[i:]))))) for s in kernels for i in range(1, len(s))}

    def made(loss_fn, *args):
        shapes = products(jax.make_jaxpr(jax.grad(loss_fn))(*args).jaxpr, [])
        return [s for s in shapes if s in kernels or tuple(sorted(s)) in kernels]

    assert not made(lambda a: loss_of(CONFIG, combine(params, a), tokens), adapters)
    assert made(lambda p: loss_of(BASE, p, tokens), params)
    assert made(lambda a: loss_of(BASE, by_hand(params, a, 1.0), tokens), adapters)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "remat", "bytes_per_number"),
    [("float32", "full", 4), ("int8", "full", 1.02), ("nf4", "full", 0.54), ("nf4", "none", 0.54)],
)
def test_a_step_holds_a_few_layers_beside_the_stored_model(kind, remat, bytes_per_number):
    config = dataclasses.replace(
        BASE, embed_dim=256, mlp_dim=1024, num_layers=24, head_dim=64, lora=LORA, dtype="float32" if kind == "float32" else "bfloat16",
        nf4=kind == "nf4", int8=("weights",) if kind == "int8" else (),
    )  # fmt: skip
    frozen, adapters = split(abstract_params(config, RULES, "stacked", one_device(), config.dtype))
    step = jax.value_and_grad(lambda a, f, t: loss_of(config, combine(f, a), t, remat))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    memory = jax.jit(step).lower(adapters, frozen, tokens).compile().memory_analysis()
    config = dataclasses.replace(config, nf4=False, int8=())
    in_layer = (
        sum(x.size for x in jax.tree.leaves(abstract_params(config, RULES, "stacked", one_device())["layers"])) / 24
    )
    adapter_bytes = 4 * sum(x.size for x in jax.tree.leaves(adapters))
    embedding_bytes = 264 * 256 * 4
    assert memory.argument_size_in_bytes < 24 * in_layer * bytes_per_number + adapter_bytes + embedding_bytes
    assert memory.output_size_in_bytes < adapter_bytes + 1000
    # 4 layers of float32, in which XLA for CPU computes. All of them would be 96 bytes a number of one, and in bfloat16 48.
    assert memory.temp_size_in_bytes < 16 * in_layer


@pytest.mark.integration
@pytest.mark.parametrize("kind", [None, "int8", "nf4"])
def test_the_merged_model_computes_what_the_adapted_one_does(kind):
    config, params = prepared(kind)
    adapters = random_adapters()
    wanted = full_logits(config, "stacked", combine(params, adapters), TOKENS)
    plain, merged = merged_arrays(config, params, adapters)
    assert plain == BASE
    target = abstract_params(plain, RULES, "per_layer", one_device())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(lambda x: (x.shape, x.dtype), target)
    logits = full_logits(plain, "per_layer", merged, TOKENS)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert abs(logits - full_logits(plain, "stacked", floats(params), TOKENS)).max() > 0.1


@pytest.mark.integration
def test_merging_rounds_once_and_frees_what_is_given_up():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    adapters = random_adapters(mesh=mesh)
    params = base(mesh, dtype="bfloat16")
    whole = by_hand(jax.tree.map(lambda x: np.array(x, np.float32), params), adapters, LORA.scale)
    wanted = whole["layers"]["mlp"]["up_proj"]["kernel"][1].astype(jnp.bfloat16)
    _, kept = merged_arrays(CONFIG, params, adapters, mesh)
    up = kept["layers"][1]["mlp"]["up_proj"]["kernel"]
    assert up.dtype == jnp.float32 and not up.sharding.is_fully_replicated
    _, lazy = merge(CONFIG, RULES, mesh, params, adapters, "bfloat16")
    assert all(x.is_deleted() for x in jax.tree.leaves((params["layers"], adapters)))
    merged = jax.tree.map(lambda leaf: leaf.compute(), lazy, is_leaf=lambda x: isinstance(x, Merged))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(merged))
    ours = merged["layers"][1]["mlp"]["up_proj"]["kernel"]
    # They differ where the sum of three products fell on the other side.
    assert (np.asarray(ours) != np.asarray(wanted)).mean() < 1e-3


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, "nf4"])
def test_eight_devices_compute_what_one_does(kind):
    results = []
    for mesh in (one_device(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        config, params = prepared(kind, mesh)
        adapters = random_adapters(config, mesh)
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(lambda a, f, c=config: loss_of(c, combine(f, a), TOKENS)))
            results.append(step(adapters, params))
            merged = merged_arrays(config, params, adapters, mesh)[1]
            results[-1] += (merged,)
    one, eight = (jax.tree.map(np.array, result) for result in results)
    assert_same(eight, one, 1e-5)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT calls it
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_an_export_has_the_same_logits_under_transformers_and_its_adapter_under_peft(family, tmp_path, request):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    tiny_model = request.getfixturevalue("tiny_model" if family == "qwen2" else "tiny_qwen3")
    config, params = load_model(resolve_source(tiny_model), one_device(), RULES, "stacked", dtype="float32")
    config = dataclasses.replace(config, lora=LORA)
    adapters = random_adapters(config)
    tokens = random_tokens(config, (2, 9))
    wanted = full_logits(config, "stacked", combine(params, adapters), tokens)
    adapter = to_peft(config, adapters, tiny_model, None)
    plain, merged = merge(config, RULES, one_device(), params, adapters, "float32")
    save_hf(tmp_path / "hf", plain, merged, "float32", Path(tiny_model), adapter=adapter)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == family

    def assert_same_logits(model):
        with torch.no_grad():
            theirs = model(torch.from_numpy(tokens).long()).logits.numpy()
        np.testing.assert_allclose(theirs, wanted, atol=2e-5)

    assert_same_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32))
    peft = pytest.importorskip("peft")
    # PEFT finds the base by its name in the adapter's config.
    directory = str(tmp_path / "hf" / "adapter")
    assert_same_logits(peft.AutoPeftModelForCausalLM.from_pretrained(directory, dtype=torch.float32))
    base_model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert_same_logits(peft.PeftModel.from_pretrained(base_model, directory))
