"""The config of a fine-tuning run, what of it a resumed run must have in common, and what it means for the model's parameters."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from s1jax.data.examples import DataConfig, Examples
from s1jax.model import lora
from s1jax.model.config import LoraConfig, ModelConfig
from s1jax.model.qwen2 import Params
from s1jax.runtime.errors import UserError
from s1jax.runtime.precision import DType, Int8
from s1jax.runtime.sharding import MeshConfig, ShardingRules
from s1jax.train.log import Tracker
from s1jax.train.optimizer import OptimizerConfig
from s1jax.train.step import StepConfig

# Fields that change no result but for rounding (or, as `model` and `data.source`, are told by what was read): a run may go on with others.
NEUTRAL_FIELDS = {
    "model", "output", "data.source", "data.pack", "data.row_length", "data.rows_per_pass", "data.pad_multiple",
    "data.halvings", "mesh", "rules", "step", "export_dtype", "eval_source", "eval_every", "save_every", "keep", "trackers",
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run."""

    model: str
    """Hugging Face directory or hub id (ID@REVISION: a branch, tag or commit), or one of our own checkpoints."""
    output: str
    """Run directory: checkpoints, metrics.jsonl, rejects.jsonl, and the Hugging Face export in hf/."""
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rules: ShardingRules = field(default_factory=ShardingRules)
    step: StepConfig = field(default_factory=StepConfig)
    dtype: DType = "bfloat16"
    """Compute dtype."""
    param_dtype: DType = "float32"
    """Dtype of master weights and optimizer state; bfloat16 is rounded stochastically."""
    export_dtype: DType = "bfloat16"
    """Dtype of the exported weights."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank over frozen weights, to be merged on export; needs about ten times the learning rate."""
    lora_alpha: float = 32.0
    """What adapters are multiplied with is this over their rank."""
    frozen: Literal["float", "int8", "nf4"] = "float"
    """How LoRA's frozen weights are stored: in the compute dtype, in 8 bits, or in 4 (QLoRA)."""
    eval_source: str | None = None
    """Rows to measure the loss on that are not trained on; a source as `data.source`."""
    eval_every: int = 63
    """Steps between evaluations; the last step is always evaluated, and what is evaluated is saved."""
    save_every: int = 63
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Number of checkpoints kept (the older for where the newer is damaged), and besides them the one of the least evaluation loss."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """What metrics are reported to, besides metrics.jsonl."""

    def __post_init__(self) -> None:
        if not self.output.strip():
            raise UserError("output is empty: give the run a directory")
        for name in ("eval_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("dtype", "param_dtype", "export_dtype"):
            if getattr(self, name) not in get_args(DType):
                raise UserError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(get_args(DType))}")
        if self.frozen not in ("float", "int8", "nf4"):
            raise UserError(f"frozen is {self.frozen!r}: choose one of float, int8, nf4")
        if self.lora is None and self.frozen != "float":
            raise UserError(
                f"frozen is {self.frozen}, but all weights are trained: set lora_rank, or leave frozen away"
            )
        if self.lora is not None and self.param_dtype != "float32":
            raise UserError(
                f"param_dtype is {self.param_dtype}: LoRA's adapters are float32 (the frozen weights have the compute dtype)"
            )

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters, if there are any."""
        return None if self.lora_rank is None else LoraConfig(self.lora_rank, self.lora_alpha)


def identity_of(config: TrainConfig, examples: Examples, weights: str) -> dict[str, Any]:
    """Return what a run must have in common with the one that it resumes; `weights` is the fingerprint of the source model."""
    fields: dict[str, Any] = {}
    for name, value in asdict(config).items():
        fields |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    fields = {name: value for name, value in fields.items() if not {name, name.split(".")[0]} & NEUTRAL_FIELDS}
    return fields | {"training examples": examples.fingerprint, "weights": weights}


def with_adapters(config: TrainConfig, model_config: ModelConfig) -> ModelConfig:
    """Return the model as it is trained: with LoRA's adapters and stored weights, where the config asks for them."""
    if config.lora_rank is not None and config.lora_rank > model_config.embed_dim:
        raise UserError(
            f"lora_rank is {config.lora_rank}: the model's matrices have no more than rank {model_config.embed_dim}"
        )
    int8: tuple[Int8, ...] = ("weights",) if config.frozen == "int8" else ()
    return replace(model_config, lora=config.lora, int8=int8, nf4=config.frozen == "nf4")


def weight_dtype(config: TrainConfig) -> str:
    """Return the dtype of weights: that of master weights if they are trained, else the compute dtype."""
    return config.param_dtype if config.lora is None else config.dtype


def split_params(config: TrainConfig, params: Params) -> tuple[Params, Params]:
    """Return what of a model's parameters is frozen, and what is trained."""
    return ({}, params) if config.lora is None else lora.split(params)
