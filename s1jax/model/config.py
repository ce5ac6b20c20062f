"""The shape of a Qwen2.5 model: a Hugging Face `config.json`, or the name of a published size, -> `ModelConfig`.

Source of the sizes: the `config.json` of each `Qwen/Qwen2.5-<size>-Instruct`.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from s1jax.ops.rope import YarnConfig
from s1jax.runtime.errors import UserError
from s1jax.runtime.precision import Int8

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
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, tie_word_embeddings, vocab_size.
SIZES = {
    "0.5B": (896, 4864, 24, 14, 2, True, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, True, 151936),
    "3B": (2048, 11008, 36, 16, 2, True, 151936),
    "7B": (3584, 18944, 28, 28, 4, False, 152064),
    "14B": (5120, 13824, 48, 40, 8, False, 152064),
    "32B": (5120, 27648, 64, 40, 8, False, 152064),
    "72B": (8192, 29568, 80, 64, 8, False, 152064),
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
    """The shape of a Qwen2.5 model, and the dtype it computes in."""

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
        """Return the config for the dict of a Hugging Face `config.json`. Raises UserError for a setting that this decoder lacks."""
        # `rope_parameters` is the newer form of `rope_theta` and `rope_scaling`.
        rope_field = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        rope = rope_field if isinstance(rope_field, dict) else {}
        rope_type = rope.get("rope_type") or rope.get("type") or "default"
        rotary_factor = rope.get("partial_rotary_factor") or hf.get("partial_rotary_factor") or 1
        num_heads, num_kv_heads = hf.get("num_attention_heads") or 0, hf.get("num_key_value_heads")
        bad_numbers = _bad_numbers(hf | rope)
        has_remainder = not bad_numbers and num_kv_heads and num_heads % num_kv_heads
        is_problem = {
            f"model_type is {hf.get('model_type')!r}, not 'qwen2'": hf.get("model_type") != "qwen2",
            f"hidden_act is {hf.get('hidden_act')!r}, not 'silu'": hf.get("hidden_act", "silu") != "silu",
            "use_sliding_window is set": hf.get("use_sliding_window"),
            f"rope_parameters or rope_scaling is {rope_field!r}: it must be an object": rope is not rope_field,
            **dict.fromkeys(bad_numbers, True),
            f"rope type is {rope_type!r}, not 'default' or 'yarn'": rope_type not in ("default", "yarn"),
            "yarn without a factor": rope_type == "yarn" and rope.get("factor") is None,
            "yarn with mscale or mscale_all_dim": rope.get("mscale") or rope.get("mscale_all_dim"),
            "yarn with truncate false": rope.get("truncate") is False,
            "partial_rotary_factor is not 1": rotary_factor != 1,
            f"num_key_value_heads {num_kv_heads} does not divide num_attention_heads {num_heads}": has_remainder,
        }
        if problems := [problem for problem, holds in is_problem.items() if holds]:
            raise UserError(f"not a Qwen2.5 config: {'; '.join(problems)}")
        values: dict[str, Any] = {
            "num_key_value_heads": num_heads,
            "head_dim": hf["hidden_size"] // num_heads,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        } | {name: value for name, value in hf.items() if value}
        values["rope_theta"] = float(rope.get("rope_theta") or values["rope_theta"])
        if values["head_dim"] % 2 or not values["head_dim"]:
            raise UserError(f"head_dim is {values['head_dim']}: it must be even, since its dimensions turn in pairs")
        yarn = None
        if rope_type == "yarn":
            given = {field.name: rope[field.name] for field in fields(YarnConfig) if rope.get(field.name)}
            yarn = YarnConfig(**{"original_max_position_embeddings": values["max_position_embeddings"]} | given)
        return cls(**{ours: values[theirs] for theirs, ours in HF_NAMES.items()}, yarn=yarn, dtype=dtype)

    def to_hf(self) -> dict[str, Any]:
        """Return the dict of a Hugging Face `config.json` from which `from_hf` returns this config."""
        hf: dict[str, Any] = {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **{theirs: getattr(self, ours) for theirs, ours in HF_NAMES.items()},
            "hidden_act": "silu",
            "use_sliding_window": False,
            "attention_dropout": 0.0,
        }
        if self.yarn is not None:
            yarn = {f.name: getattr(self.yarn, f.name) for f in fields(self.yarn)}
            hf["rope_scaling"] = {"rope_type": "yarn"} | {k: v for k, v in yarn.items() if v is not None}
        return hf


def _bad_numbers(fields: dict[str, Any]) -> list[str]:
    """Return the problems with the known numbers among the fields of a config.json and of its rotation."""
    problems = []
    for name in (*REQUIRED, *OPTIONAL, *SCALES):
        value: Any = fields.get(name)
        kind, bound = ("finite number", math.inf) if name in SCALES else ("whole number below 2**31", 2**31)
        is_number = type(value) is int or (type(value) is float and name in SCALES)
        if (value is not None or name in REQUIRED) and not (is_number and 0 < value < bound):
            problems.append(f"{name} is {value!r}: it must be a positive {kind}")
    return problems


def qwen2_5(size: str, dtype: str = "bfloat16") -> ModelConfig:
    """Return the config of Qwen2.5-Instruct of this size. Raises UserError if there is no such size."""
    if size not in SIZES:
        raise UserError(f"there is no Qwen2.5 of size {size!r}; the sizes are {', '.join(SIZES)}")
    embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, is_tied, vocab_size = SIZES[size]
    return ModelConfig(
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=embed_dim // num_heads,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
        tie_word_embeddings=is_tied,
        dtype=dtype,
    )
