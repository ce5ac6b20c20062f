"""The training program of a config: (config, model config, mesh) -> optimizer, abstract state and the step, ready to be compiled.

The run, the preflight and the benchmark all build their step here, so that each of them compiles the same program. The mesh may consist of
devices that are not present, because nothing here holds an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from s1jax.data.packing import Shape
from s1jax.model import lora
from s1jax.model.config import ModelConfig
from s1jax.model.qwen2 import Params, abstract_params
from s1jax.train.config import TrainConfig, weight_dtype, with_adapters
from s1jax.train.optimizer import make_optimizer
from s1jax.train.step import TrainState, abstract_batch, abstract_state, init_state, make_loss_step, make_train_step


@dataclass(frozen=True)
class TrainingProgram:
    """The training step of a config on a mesh, ready to be compiled for batches of given shapes."""

    config: TrainConfig
    model_config: ModelConfig
    """The model as it is trained, with LoRA's adapters if there are any."""
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    frozen: Params
    """Abstract parameters that are not trained."""
    state: TrainState
    """Abstract state: trained parameters, optimizer state, step."""

    def lower_step(self, shapes: Sequence[Shape], platform: str | None = None) -> jax.stages.Lowered:
        """Lower the step (state, frozen, batch) -> (state, metrics) for batches of these shapes.

        `platform` is "cpu", "cuda" or "tpu"; the default is the platform of the devices that are present.
        """
        config = self.config
        with jax.set_mesh(self.mesh):
            train_step = make_train_step(
                self.model_config, config.rules, self.optimizer, config.step, config.data.pack, config.data.seed,
                shardings=jax.tree.map(lambda x: x.sharding, self.state),
            )  # fmt: skip
            traced = train_step.trace(self.state, self.frozen, abstract_batch(shapes, self.mesh, config.rules))
            return traced.lower(lowering_platforms=None if platform is None else (platform,))

    def lower_loss(self, shapes: Sequence[Shape]) -> jax.stages.Lowered:
        """Lower the function (trained, frozen, batch) -> loss for batches of these shapes, on the devices that are present."""
        config = self.config
        with jax.set_mesh(self.mesh):
            loss = make_loss_step(self.model_config, config.rules, config.step, config.data.pack)
            return loss.lower(self.state.params, self.frozen, abstract_batch(shapes, self.mesh, config.rules))

    def init_state(self, params: Params) -> TrainState:
        """Return the state at step 0 for these trained parameters, which lie on the mesh."""
        return init_state(self.optimizer, params, self.mesh, self.config.step.offload_optimizer)

    def batch_shards(self) -> tuple[int, int]:
        """Return into how many parts the mesh splits the rows of a micro-batch, and each row."""
        rules, shape = self.config.rules, self.mesh.shape
        return rules.num_shards("batch", shape), rules.num_shards("length", shape)


def training_program(
    config: TrainConfig, model_config: ModelConfig, mesh: jax.sharding.Mesh, num_steps: int
) -> TrainingProgram:
    """Return the training step of `config` on `mesh`.

    `model_config` is the source model's config. `num_steps` is the length of the run, which determines the learning rates.
    """
    model_config = with_adapters(config, model_config)
    optimizer = make_optimizer(config.optimizer, num_steps)
    params: Any = abstract_params(model_config, config.rules, "stacked", mesh, weight_dtype(config))
    frozen, trained = ({}, params) if config.lora is None else lora.split(params)
    state = abstract_state(optimizer, trained, mesh, config.step.offload_optimizer)
    return TrainingProgram(config, model_config, mesh, optimizer, frozen, state)
