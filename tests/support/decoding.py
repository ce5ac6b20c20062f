"""A tiny engine with random weights, whose every token comes up."""

import dataclasses

import jax
import numpy as np

from s1jax.data.chat import Delimiters
from s1jax.data.condition import Condition
from s1jax.decode.engine import Engine
from s1jax.decode.loaded import LoadedModel, make_vocabulary
from s1jax.decode.request import Request
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import unstack
from s1jax.runtime.sharding import MeshConfig, ShardingRules, make_mesh
from tests.support.models import random_params

START, END, EOT, THINK, ANSWER, NEWLINE, FINAL, COLON, WAIT, COMMA = 40, 41, 42, 1, 2, 3, 4, 5, 6, 7
NUM_TOKENS = 43
DELIMITERS = Delimiters(
    think=(START, THINK),
    answer=(START, ANSWER),
    newline=(NEWLINE,),
    end_thinking=("<start>", "<end>", "<eot>"),
    forced_ends=(),
    end_answer=(END, EOT),
    pad=EOT,
)
FINAL_IDS = (START, ANSWER, NEWLINE, FINAL, COLON)
ADDED_TOKENS = {"<start>": START, "<end>": END, "<eot>": EOT}
CONFIG = ModelConfig(
    vocab_size=48, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
    rms_norm_eps=1e-6, max_position_embeddings=256, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip
RULES = ShardingRules()


def to_text(ids):
    """One letter for each id."""
    return "".join(chr(ord("A") + i) for i in ids)


def make_engine(
    mesh_config=None, attention=None, dtype="float32", family="qwen2", delimiters=DELIMITERS, texts=None, **options
):
    mesh = make_mesh(mesh_config or MeshConfig(fsdp=1), jax.devices()[: 8 if mesh_config else 1])
    config = dataclasses.replace(CONFIG, dtype=dtype, family=family)
    params = random_params(config, "stacked", mesh)
    # Larger weights than at initialisation, so that logits differ and every id, the ends included, comes up.
    params = jax.tree.map(lambda x: (x * 4 if x.ndim > 1 else x).astype(dtype), params)
    layers = unstack(params, CONFIG.num_layers)
    texts = texts or ["\n" if i == NEWLINE else to_text([i]) for i in range(NUM_TOKENS)]
    vocabulary = make_vocabulary(delimiters, texts, ADDED_TOKENS, config.vocab_size)
    return Engine(LoadedModel(config, layers, RULES, mesh, vocabulary, attention, to_text), **options)


def make_request(prompt, **fields):
    """A request; fields of its condition may be given like its own."""
    own = {field.name for field in dataclasses.fields(Request)}
    ignore_text = "Wait" if fields.get("ignore_ids") else ""
    fields.setdefault("final_ids", FINAL_IDS)
    of_condition = {"max_thinking_tokens": 0, "ignore_text": ignore_text} | {
        name: value for name, value in fields.items() if name not in own
    }
    return Request(prompt, Condition(**of_condition), **{name: fields[name] for name in fields if name in own})


def changed(request, **fields):
    """The request with other fields of its condition, or of its own."""
    own = {name: value for name, value in fields.items() if hasattr(request, name)}
    condition = {name: value for name, value in fields.items() if name not in own}
    return dataclasses.replace(request, condition=dataclasses.replace(request.condition, **condition), **own)


def at_point(request, point):
    """The request with the limits of a point, and no points."""
    return changed(request, points=(), **point._asdict())


def mixed_requests(n=8, **changes):
    """Requests that differ in prompt, limits, ignore string and temperature."""
    rng = np.random.default_rng(0)
    fields = [
        dict(
            prompt=(*rng.integers(8, 40, size=3 + 5 * (i % 4)).tolist(), START, THINK),
            max_thinking_tokens=[0, 5, 17, 40][i % 4],
            min_thinking_tokens=[0, 0, 10][i % 3] if i % 4 > 1 else 0,
            num_ignore=i % 3,
            ignore_ids=[(), (WAIT,), (WAIT, COMMA)][i % 3],
            max_answer_tokens=12,
            temperature=[1.0, 0.0, 0.7][i % 3],
            problem=i,
            seed=3,
        )
        for i in range(n)
    ]
    return [make_request(**{**f, **changes}) for f in fields]
