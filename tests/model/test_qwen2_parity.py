"""The decoder against Hugging Face torch: submodules, logits and greedy tokens in float32, and how far bfloat16 strays."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from s1jax.checkpoint.huggingface import export_weights
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model.cache import init_cache
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import graphdef, unstack
from s1jax.ops.rope import rotation_at
from tests.support.models import RULES, YARN, full_logits, one_device, published, random_tokens, relative_error

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(2)

SMALL = {"intermediate_size": 320, "num_hidden_layers": 3, "vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2}
WIDTH = SMALL | {"hidden_size": 192, "head_dim": 128}
# Every ratio of heads to key/value heads, both head dims, both kinds of head; only width and depth are scaled down.
FAMILIES = {
    "0.5B": published("Qwen2.5-0.5B", **SMALL),
    "1.5B": published("Qwen2.5-1.5B", **WIDTH),
    "7B": published("Qwen2.5-7B", **WIDTH),
    "14B_32B": published("Qwen2.5-32B", **WIDTH, num_attention_heads=10, num_key_value_heads=2),
    "72B_yarn": published("Qwen2.5-72B", **WIDTH, num_attention_heads=16, num_key_value_heads=2, rope_scaling=YARN),
    "qwen3_tied": published("Qwen3-4B", **WIDTH, num_attention_heads=8, num_key_value_heads=2),
    "qwen3_untied_yarn": published(
        "Qwen3-32B", **WIDTH, num_attention_heads=16, num_key_value_heads=2, rope_scaling=YARN
    ),
}


@dataclasses.dataclass
class Pair:
    """The same weights in Hugging Face torch and here, both float32."""

    directory: Path
    hf: torch.nn.Module
    config: ModelConfig
    params: dict
    layout: str

    def model(self):
        """The model with one module per layer, to call its submodules."""
        params = self.params if self.layout == "per_layer" else unstack(self.params, self.config.num_layers)
        return nnx.merge(graphdef(self.config, RULES, "per_layer"), params)

    @functools.cached_property
    def logits(self):
        """Logits [B, T, V] of tokens and, where given, positions and segment ids."""
        return functools.partial(jax.jit(functools.partial(full_logits, self.config, self.layout)), self.params)


def load_pair(directory: Path, layout: str = "per_layer") -> Pair:
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    config, params = load_model(
        resolve_source(directory), one_device(), RULES, layout, dtype="float32", param_dtype="float32"
    )
    return Pair(directory, hf, config, params, layout)


def write_random_model(hf_config: dict, directory: Path) -> Path:
    """Save random weights that leave nothing degenerate: peaked attention, biases away from 0, norms away from 1."""
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[hf_config["model_type"]].from_dict(hf_config)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.normal_(1.0, 0.3)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.5)
            else:
                weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def real(real_model) -> Pair:
    return load_pair(real_model, "stacked")


@pytest.fixture(scope="session")
def pair_of(request, tmp_path_factory):
    """A function from a family's name, or "real", to its pair; each is made once."""

    @functools.cache
    def make(name: str) -> Pair:
        if name == "real":
            return request.getfixturevalue("real")
        return load_pair(write_random_model(FAMILIES[name], tmp_path_factory.mktemp(name)))

    return make


@pytest.mark.parametrize("name", [pytest.param("real", marks=pytest.mark.slow), *FAMILIES])
@torch.no_grad()
def test_every_submodule_equals_hugging_faces(name, pair_of):
    pair = pair_of(name)
    ours, hf, config = pair.model(), pair.hf.model, pair.config
    B, T, index = 2, 24, pair.config.num_layers - 1
    layer, hf_layer = ours.layers[index], hf.layers[index]
    tokens = random_tokens(config, (B, T))
    x = np.random.default_rng(1).standard_normal((B, T, config.embed_dim)).astype(np.float32)
    tx, x = torch.from_numpy(x), jnp.asarray(x)
    positions = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    segment_ids = jnp.ones_like(positions)
    rotation = rotation_at(positions, config.head_dim, config.rope_theta, config.yarn)
    rotary = hf.rotary_emb(tx, torch.from_numpy(np.array(positions)).long())
    mask = torch.full((T, T), -torch.inf).triu(1)[None, None]
    attended = hf_layer.self_attn(tx, position_embeddings=rotary, attention_mask=mask)[0]
    block = hf_layer(tx, position_embeddings=rotary, attention_mask=mask)
    attention = layer.self_attn(x, rotation, positions, segment_ids, None)[0]
    heads = lambda y: y.reshape(B, T, -1)  # noqa: E731  N x H as one dimension, as in Hugging Face
    errors = {
        "embed_tokens": relative_error(
            ours.embed_tokens.weight[...][tokens], hf.embed_tokens(torch.from_numpy(tokens))
        ),
        "input_layernorm": relative_error(layer.input_layernorm(x), hf_layer.input_layernorm(tx)),
        "post_attention_layernorm": relative_error(
            layer.post_attention_layernorm(x), hf_layer.post_attention_layernorm(tx)
        ),
        "norm": relative_error(ours.norm(x), hf.norm(tx)),
        "q_proj": relative_error(heads(layer.self_attn.q_proj(x)), hf_layer.self_attn.q_proj(tx)),
        "k_proj": relative_error(heads(layer.self_attn.k_proj(x)), hf_layer.self_attn.k_proj(tx)),
        "v_proj": relative_error(heads(layer.self_attn.v_proj(x)), hf_layer.self_attn.v_proj(tx)),
        "self_attn": relative_error(attention, attended),
        "mlp": relative_error(layer.mlp(x), hf_layer.mlp(tx)),
        "block": relative_error(layer(x, rotation, positions, segment_ids)[0], block),
        "lm_head": relative_error(ours.logits(x), pair.hf.lm_head(tx)),
    }
    if config.family == "qwen3":
        k = np.array(layer.self_attn.k_proj(x))
        for norm in ("q_norm", "k_norm"):
            ours, theirs = (getattr(attention, norm) for attention in (layer.self_attn, hf_layer.self_attn))
            errors[norm] = relative_error(ours(jnp.asarray(k)), theirs(torch.from_numpy(k)))
    print(name, {key: f"{error:.1e}" for key, error in errors.items()})
    assert errors == {key: pytest.approx(0, abs=1e-5) for key in errors}


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_of_random_weights_equal_hugging_faces(name, pair_of):
    pair = pair_of(name)
    tokens = random_tokens(pair.config, (2, 48))
    theirs = pair.hf(torch.from_numpy(tokens)).logits
    assert theirs.softmax(-1).amax(-1).mean() < 0.9 and theirs.std() > 0.5  # neither saturated nor flat
    error = relative_error(pair.logits(tokens), theirs)
    print(f"{name}: largest error {error:.1e} of the largest logit")
    assert error < 1e-4


@pytest.mark.parametrize("name", ["0.5B", "qwen3_tied", "qwen3_untied_yarn"])
def test_gradients_of_the_loss_equal_hugging_faces(name, pair_of, tmp_path):
    pair = pair_of(name)
    tokens = random_tokens(pair.config, (2, 24))

    def loss(params):
        logits = full_logits(pair.config, "per_layer", params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    export_weights(tmp_path, pair.config, jax.jit(jax.grad(loss))(pair.params), None)
    ours = load_file(tmp_path / "model.safetensors")
    ids = torch.from_numpy(tokens).long()
    torch.nn.functional.cross_entropy(pair.hf(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs = {key: weight.grad.clone() for key, weight in pair.hf.named_parameters()}
    pair.hf.zero_grad()
    errors = {key: relative_error(ours.pop(key), gradient) for key, gradient in theirs.items()}
    print(f"{name}: largest error {max(errors.values()):.1e} of a weight's largest gradient")
    assert not ours and errors == {key: pytest.approx(0, abs=1e-4) for key in errors}


def real_texts(shared: Path, tokenizer, with_answers: bool, count: int = 8) -> list[list[int]]:
    """Token ids of real questions under the chat template, with their worked solutions or ready for an answer."""
    texts = []
    for name in ("gsm8k_test", "math500"):
        for line in (shared / "data" / f"{name}.jsonl").read_text().splitlines()[: count // 2]:
            row = json.loads(line)
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False
            )
            texts.append(tokenizer.encode(text + row["solution"] * with_answers, add_special_tokens=False))
    return texts


def padded(rows: list[list[int]], left: bool = False, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids [B, T] and the mask of real ones."""
    T = length or max(map(len, rows))
    ids, mask = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), np.int32)
    for i, row in enumerate(rows):
        where = slice(T - len(row), T) if left else slice(len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


@pytest.fixture(scope="session")
def real_tokenizer(real_model):
    return transformers.AutoTokenizer.from_pretrained(real_model)


@pytest.fixture(scope="session")
def real_batch(real, real_tokenizer, shared):
    """Real questions with their solutions, [8, 160] ids and mask, and Hugging Face's float32 logits of the real tokens."""
    rows = [row[:160] for row in real_texts(shared, real_tokenizer, with_answers=True)]
    ids, mask = padded(rows, length=160)
    with torch.no_grad():
        logits = real.hf(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits[
            torch.from_numpy(mask) > 0
        ]
    return ids, mask, logits


def test_logits_of_a_real_model_equal_hugging_faces_and_so_does_every_greedy_choice(real, real_batch):
    ids, mask, theirs = real_batch
    ours = np.asarray(real.logits(ids, None, mask))[mask > 0]
    error = relative_error(ours, theirs)
    print(f"largest error {error:.1e} of the largest logit, {len(theirs)} tokens")
    assert error < 1e-4
    assert (ours.argmax(axis=-1) == theirs.argmax(-1).numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["Qwen2.5-0.5B", "Qwen3-0.6B"])
@torch.no_grad()
def test_logits_of_a_whole_published_shape_equal_hugging_faces(size, tmp_path):
    pair = load_pair(write_random_model(published(size), tmp_path))
    tokens = random_tokens(pair.config, (1, 32))
    error = relative_error(pair.logits(tokens), pair.hf(torch.from_numpy(tokens)).logits)
    print(f"largest error {error:.1e} of the largest logit")
    assert error < 1e-4


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def greedy(params, ids, mask, config: ModelConfig, steps: int):
    """Greedy continuations [B, steps] of right-padded prompts through the cache, and how far the best logit is ahead."""
    model = nnx.merge(graphdef(config, RULES, "per_layer"), params)
    B, T = ids.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    hidden, cache = model(ids, positions, mask, init_cache(config, B, T + steps, RULES))
    lengths = mask.sum(axis=1)

    def step(carry, _):
        cache, hidden, position = carry
        best, token = jax.lax.top_k(model.logits(hidden[:, None])[:, 0], 2)
        hidden, cache = model(token[:, :1], position[:, None], jnp.ones((B, 1), jnp.int32), cache)
        return (cache, hidden[:, 0], position + 1), (token[:, 0], best[:, 0] - best[:, 1])

    first = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    tokens, margins = jax.lax.scan(step, (cache, first, lengths), length=steps)[1]
    return tokens.T, margins.T


def generate(hf, prompts: list[list[int]], steps: int) -> np.ndarray:
    """Hugging Face's greedy continuations [B, steps]; past the end of text too, so that all tokens are compared."""
    ids, mask = (torch.from_numpy(x).long() for x in padded(prompts, left=True))
    hf.generation_config.eos_token_id = None
    tokens = hf.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=steps, pad_token_id=0)
    return tokens[:, ids.shape[1] :].numpy()


@pytest.mark.slow
def test_200_greedy_tokens_through_the_cache_equal_hugging_faces(real, real_tokenizer, shared):
    prompts = real_texts(shared, real_tokenizer, with_answers=False)
    params = unstack(real.params, real.config.num_layers)
    ours, margins = greedy(params, *padded(prompts), real.config, steps=200)
    same = np.asarray(ours) == generate(real.hf, prompts, steps=200)
    first = np.where(same.all(axis=1), 200, same.argmin(axis=1))
    print(f"identical up to {first.tolist()} of 200 tokens; closest call {float(margins.min()):.1e}")
    assert same.all(), (
        f"first differences at {first}; the best logits were ahead by {margins[np.arange(8), first % 200]}"
    )


def test_bfloat16_stays_within_a_thousandth_of_a_nat_of_float32(real, real_batch):
    ids, mask, logits = real_batch
    config, params = load_model(resolve_source(real.directory), one_device(), RULES, "stacked", param_dtype="bfloat16")
    assert config.dtype == "bfloat16"
    ours = jax.jit(functools.partial(full_logits, config, "stacked"))(params, ids, None, mask)[mask > 0]
    wanted = logits.log_softmax(-1).numpy()
    divergence = float((np.exp(wanted) * (wanted - np.asarray(jax.nn.log_softmax(ours)))).sum(axis=-1).mean())
    print(f"mean KL of {len(wanted)} tokens: {divergence:.2e} nat")
    assert 0 < divergence <= 1e-3
