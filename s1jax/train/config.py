"""The config of a fine-tuning run: its fields, its identity (what a resumed run may not change), and which parameters it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from s1jax.data.examples import DataConfig, Examples
from s1jax.model.config import LoraConfig, ModelConfig
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, OutputPath, check_types
from s1jax.runtime.precision import DType, Int8
from s1jax.runtime.sharding import MeshConfig, ShardingRules
from s1jax.train.log import Tracker
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.step import StepConfig

Frozen = Literal["float", "int8", "nf4"]

# Fields that a resumed run may change: they affect only rounding, or a content hash covers them (`model`, and of `data` `source` and
# `thinking_format`).
NEUTRAL_FIELDS = {
    "model", "output", "data.source", "data.thinking_format", "data.pack", "data.row_length", "data.rows_per_micro_batch",
    "data.pad_multiple", "data.num_row_lengths", "mesh", "rules", "step", "export_dtype", "eval_source", "eval_every", "save_every",
    "keep", "trackers",
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run."""

    model: InputPath
    """The model to start from: a Hugging Face directory, a hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    output: OutputPath
    """Run directory. It receives checkpoints, metrics.jsonl, rejects.jsonl and the Hugging Face export in hf/."""
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rules: ShardingRules = field(default_factory=ShardingRules)
    step: StepConfig = field(default_factory=StepConfig)
    dtype: DType = "bfloat16"
    """Compute dtype."""
    param_dtype: DType = "float32"
    """Dtype of master weights and optimizer state. bfloat16 is rounded stochastically."""
    export_dtype: DType = "bfloat16"
    """Dtype of the exported weights."""
    lora_rank: int | None = None
    """LoRA: train adapters of this rank while the weights stay frozen, and merge them on export. This needs about ten times the learning
    rate. Default: train all weights."""
    lora_alpha: float = 32.0
    """LoRA scales its adapters by lora_alpha / lora_rank."""
    frozen: Frozen = "float"
    """Storage of LoRA's frozen weights: `float` is the compute dtype, `int8` is 8 bits, `nf4` is 4 bits (QLoRA)."""
    eval_source: InputPath | None = None
    """Held-out rows on which the loss is measured: a source like `data.source`."""
    eval_every: int = 63
    """Steps between evaluations. The last step is always evaluated. Every evaluated step is saved."""
    save_every: int = 63
    """Steps between checkpoints. The last step is always saved."""
    keep: int = 2
    """Number of newest checkpoints to keep; an older one serves if the newest is damaged. The checkpoint of the lowest evaluation loss is
    kept in addition."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where metrics are reported, in addition to metrics.jsonl."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.output.strip():
            raise UserError("output is empty: give the run a directory")
        for name in ("eval_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.lora is None and self.frozen != "float":
            raise UserError(
                f"frozen is {self.frozen}, but without lora_rank all weights are trained: set lora_rank, or leave out frozen"
            )
        if self.lora is not None and self.param_dtype != "float32":
            raise UserError(
                f"param_dtype is {self.param_dtype}: LoRA's adapters are always float32, so leave out param_dtype "
                "(dtype sets that of the frozen weights)"
            )

    @property
    def lora(self) -> LoraConfig | None:
        """The config of the adapters; None without LoRA."""
        return None if self.lora_rank is None else LoraConfig(self.lora_rank, self.lora_alpha)


def identity_of(config: TrainConfig, examples: Examples, weights: str) -> dict[str, Any]:
    """Return the identity of a run: every field that affects the result, and content hashes. A resumed run must have the same.

    Nested names are joined by a dot. `weights` is the fingerprint of the source model.
    """
    fields: dict[str, Any] = {}
    for name, value in asdict(config).items():
        fields |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    fields = {name: value for name, value in fields.items() if not {name, name.split(".")[0]} & NEUTRAL_FIELDS}
    return fields | {"training examples": examples.fingerprint, "weights": weights}


def with_adapters(config: TrainConfig, model_config: ModelConfig) -> ModelConfig:
    """Return the config of the model as it is trained, with LoRA's adapters and quantised weights if the config asks for them.

    Raises UserError if `lora_rank` is larger than the rank of the model's matrices.
    """
    if config.lora_rank is not None and config.lora_rank > model_config.embed_dim:
        raise UserError(
            f"lora_rank is {config.lora_rank}: it must be at most {model_config.embed_dim}, the rank of the model's matrices"
        )
    int8: tuple[Int8, ...] = ("weights",) if config.frozen == "int8" else ()
    return replace(model_config, lora=config.lora, int8=int8, nf4=config.frozen == "nf4")


def weight_dtype(config: TrainConfig) -> str:
    """Return the dtype of the model's weights: `param_dtype` if they are trained, the compute dtype if they are frozen."""
    return config.param_dtype if config.lora is None else config.dtype
