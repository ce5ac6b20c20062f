"""The shape of a Qwen2.5 or dense Qwen3 model: a Hugging Face `config.json`, or the name of a published size, -> `ModelConfig`.

Source of the sizes: the `config.json` of each `Qwen/Qwen2.5-<size>-Instruct` and `Qwen/Qwen3-<size>`.
"""

import json
import math
import re
import sys
from dataclasses import dataclass, fields
from typing import Any, Literal

from s1jax.ops.rope import YarnConfig
from s1jax.runtime.errors import UserError
from s1jax.runtime.precision import Int8

Family = Literal["qwen2", "qwen3"]
"""The `model_type` of a config.json. `qwen2` has biases on q, k and v; `qwen3` has none, but RMS norms on each head of q and k."""
# Our fields by their names in a config.json.
HF_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}
# Numbers of a config.json. REQUIRED must be present, OPTIONAL may be absent or null, and SCALES need not be whole numbers.
REQUIRED = tuple(HF_NAMES)[:5]
OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings", "original_max_position_embeddings")
SCALES = ("rms_norm_eps", "rope_theta", "factor", "beta_fast", "beta_slow", "attention_factor")
MAX_LAYERS = 10_000
FLAGS = ("tie_word_embeddings", "use_sliding_window")
# Fields that must be absent, null or the value that this decoder computes with. So must `attention_bias`, whose value the family decides.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "is_causal": True,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "attention_out_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_embedding": False,
    "partial_rotary_factor": 1,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
    "per_layer_config": None,
    "text_config": None,
}
# Words in the names of fields with which other models compute something else: scales, norms, experts, positions and masks.
FOREIGN = re.compile(
    "mup|softcap|multiplier|logits?_scal|scale_(emb|depth)|qk_(layer_?)?norm|query_pre_attn|clip_qkv|expert|moe_|parallel_(attn|residual)|"
    "rope|rotary|alibi|logn_attn|dynamic_ntk|attention_chunk"
)
# Fields that are read below, and fields that change nothing that is computed. `unread_fields` names all others.
KNOWN = {
    *HF_NAMES, *OPTIONAL, *FLAGS, *FIXED, "model_type", "attention_bias", "layer_types", "sliding_window", "max_window_layers",
    "rope_scaling", "rope_parameters", "architectures", "dtype", "torch_dtype", "quantization_config", "initializer_range",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "problem_type", "return_dict",
    "transformers_version", "_name_or_path", "_attn_implementation", "unsloth_version", "unsloth_fixed",
}  # fmt: skip
ROPE_KNOWN = {
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
    "attention_factor", "partial_rotary_factor", "mscale", "mscale_all_dim", "truncate",
}  # fmt: skip
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, tie_word_embeddings, vocab_size.
SIZES = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, True, 151936),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, True, 151936),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, True, 151936),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, False, 152064),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, False, 152064),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, False, 152064),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, False, 152064),
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, True, 151936),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, True, 151936),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, True, 151936),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, False, 151936),
    "Qwen3-14B": (5120, 17408, 40, 40, 8, False, 151936),
    "Qwen3-32B": (5120, 25600, 64, 64, 8, False, 151936),
}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): a projection computes W x + (alpha / rank) B A x, and only A and B are trained.

    By default all projections have adapters, because adapters on attention alone learn less than full fine-tuning at any rank. The
    learning rate should be about ten times that of full fine-tuning (both: https://thinkingmachines.ai/blog/lora). With the factor
    alpha / rank, as in PEFT, the best learning rate hardly depends on the rank.
    """

    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = PROJECTIONS
    """Names of the projections that have adapters, in every layer."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank is {self.rank}: it must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"alpha is {self.alpha}: it must be positive and finite")
        if not self.targets or set(self.targets) - set(PROJECTIONS):
            raise UserError(f"targets is {self.targets}: choose one or more of {', '.join(PROJECTIONS)}")

    @property
    def scale(self) -> float:
        """The factor on the product of an adapter."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Qwen2.5 or dense Qwen3 model, and the dtype it computes in."""

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    yarn: YarnConfig | None = None
    family: Family = "qwen2"
    dtype: str = "bfloat16"
    """Compute dtype: bfloat16 or float32."""
    int8: tuple[Int8, ...] = ()
    """The parts that are stored in 8 bits (`storage.py`)."""
    nf4: bool = False
    """Whether the layers' projections are stored in 4 bits (`storage.py`)."""
    lora: LoraConfig | None = None
    """The adapters that the parameters hold; None if they hold none (`lora.py`)."""

    @property
    def context_length(self) -> int:
        """The largest number of tokens that the model supports, extended by YaRN if it is set."""
        stretched = self.yarn.factor * self.yarn.original_max_position_embeddings if self.yarn else 0
        return max(self.max_position_embeddings, round(stretched))

    @classmethod
    def from_hf(cls, hf: dict[str, Any], dtype: str = "bfloat16") -> "ModelConfig":
        """Return the config for the dict of a Hugging Face `config.json`, read as transformers reads it.

        A field that changes what is computed is read or refused: UserError names all fields of a wrong type or a value that this decoder
        does not compute.
        """
        # `rope_scaling` is the older name. If both have fields, transformers reads nothing of `rope_parameters`.
        rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        if problems := _find_problems(hf, rope):
            raise UserError(f"not a Qwen2.5 or dense Qwen3 config: {'; '.join(problems)}")
        family: Family = hf["model_type"]
        num_heads = hf["num_attention_heads"]
        values: dict[str, Any] = {
            "num_key_value_heads": num_heads,
            "head_dim": 128 if family == "qwen3" else hf["hidden_size"] // num_heads,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        } | {name: value for name, value in hf.items() if value is not None}
        values["rope_theta"] = float(rope.get("rope_theta") or values["rope_theta"])
        if num_heads % values["num_key_value_heads"]:
            raise UserError(
                f"num_key_value_heads {values['num_key_value_heads']} does not divide num_attention_heads {num_heads}"
            )
        if values["head_dim"] % 2 or not values["head_dim"]:
            raise UserError(f"head_dim is {values['head_dim']}: it must be even, since its dimensions turn in pairs")
        yarn = None
        if _rope_type(rope) == "yarn":
            if values["rope_theta"] == 1:
                raise UserError("rope_theta is 1: with yarn it must be another number")
            given = {field.name: rope[field.name] for field in fields(YarnConfig) if rope.get(field.name)}
            # As in transformers, the length beside the rotation's fields comes before the one among them.
            length = hf.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
            given["original_max_position_embeddings"] = length or values["max_position_embeddings"]
            yarn = YarnConfig(**given)
            if not math.isfinite(yarn.factor * yarn.original_max_position_embeddings):
                raise UserError(f"factor {yarn.factor} of yarn extends the context without end: give a smaller one")
        shape = {ours: values[theirs] for theirs, ours in HF_NAMES.items()}
        return cls(**shape, yarn=yarn, family=family, dtype=dtype)

    def to_hf(self) -> dict[str, Any]:
        """Return the dict of a Hugging Face `config.json` from which `from_hf` returns this config."""
        hf: dict[str, Any] = {
            "architectures": [f"{self.family.capitalize()}ForCausalLM"],
            "model_type": self.family,
            **{theirs: getattr(self, ours) for theirs, ours in HF_NAMES.items()},
            "hidden_act": "silu",
            "use_sliding_window": False,
            "attention_dropout": 0.0,
        }
        if self.yarn is not None:
            yarn = {f.name: getattr(self.yarn, f.name) for f in fields(self.yarn)}
            hf["rope_scaling"] = {"rope_type": "yarn"} | {k: v for k, v in yarn.items() if v is not None}
        return hf


def unread_fields(hf: dict[str, Any]) -> list[str]:
    """Return the names of the fields of a config.json that have a value, but that this decoder neither reads nor knows as harmless."""
    return [name for name, value in hf.items() if value and name not in KNOWN]


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type") or rope.get("type") or "default"


def _find_problems(hf: dict[str, Any], rope: Any) -> list[str]:
    """Return the fields of a config.json, and of its rotation `rope`, that have a wrong type or a value that is not computed."""
    if not isinstance(rope, dict):
        return [f"rope_parameters or rope_scaling is {_shown(rope)}: it must be an object"]
    known: dict[str, Any] = hf | rope
    problems = []
    value: Any
    family = hf.get("model_type")
    if family not in ("qwen2", "qwen3"):
        problems.append(f'model_type is {_shown(family)}: it must be "qwen2" or "qwen3" (dense, without experts)')
    for name in (*REQUIRED, *OPTIONAL, *SCALES):
        value = known.get(name)
        kind, bound = ("finite number", sys.float_info.max) if name in SCALES else ("whole number below 2**31", 2**31)
        if name == "num_hidden_layers":
            kind, bound = f"whole number below {MAX_LAYERS}", MAX_LAYERS
        is_number = type(value) is int or (type(value) is float and name in SCALES)
        if (value is not None or name in REQUIRED) and not (is_number and 0 < value < bound):
            problems.append(f"{name} is {_shown(value)}: it must be a positive {kind}")
    for name in FLAGS:
        if not isinstance(hf.get(name), bool | None):
            problems.append(f"{name} is {_shown(hf[name])}: it must be true or false")
    for name, wanted in (FIXED | {"attention_bias": family != "qwen3"}).items():
        value = known.get(name)
        if value is not None and value != wanted and (value or wanted is not None):
            problems.append(f"{name} is {_shown(value)}: only {_shown(wanted)} is computed")
    for name, value in hf.items():
        is_neutral = not value or (value == 1 and value is not True)
        if name not in KNOWN and FOREIGN.search(name) and not is_neutral:
            problems.append(f"{name} is {_shown(value)}: no such field of another model is computed")
    if _rope_type(rope) not in ("default", "yarn"):
        problems.append(
            f'the type of the rotation is {_shown(_rope_type(rope))}: only "default" and "yarn" are computed'
        )
    elif unknown := sorted(set(rope) - ROPE_KNOWN):
        problems.append(f"rope_parameters or rope_scaling has fields that are not computed: {', '.join(unknown)}")
    if _rope_type(rope) == "yarn" and rope.get("factor") is None:
        problems.append("rope_parameters or rope_scaling is yarn without a factor")
    num_layers, layers, first_window = (hf.get(n) for n in ("num_hidden_layers", "layer_types", "max_window_layers"))
    first_window = 28 if first_window is None else first_window
    # Without `layer_types`, layers from `max_window_layers` on have a window.
    has_window = hf.get("use_sliding_window") is True and hf.get("sliding_window", 4096) is not None
    if layers is not None:
        if not isinstance(layers, list) or layers != ["full_attention"] * len(layers) or len(layers) != num_layers:
            problems.append(f'layer_types is {_shown(layers)}: only "full_attention" for each layer is computed')
    elif has_window and not (type(first_window) is type(num_layers) is int and first_window >= num_layers):
        problems.append(
            f"use_sliding_window is true and max_window_layers is {_shown(first_window)}: a sliding window is not computed"
        )
    return problems


def _shown(value: Any) -> str:
    """Return a value as it stands in a config.json, cut after 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def config_of_size(size: str, dtype: str = "bfloat16") -> ModelConfig:
    """Return the config of a published size, such as Qwen2.5-0.5B (Instruct) or Qwen3-0.6B. Raises UserError if there is no such size."""
    if size not in SIZES:
        raise UserError(f"there is no model of size {size!r}; the sizes are {', '.join(SIZES)}")
    embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, is_tied, vocab_size = SIZES[size]
    is_qwen3 = size.startswith("Qwen3-")
    return ModelConfig(
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=128 if is_qwen3 else embed_dim // num_heads,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=40960 if is_qwen3 else 32768,
        tie_word_embeddings=is_tied,
        family="qwen3" if is_qwen3 else "qwen2",
        dtype=dtype,
    )
