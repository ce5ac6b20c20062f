"""The identity of a run: what a resumed run must have in common with the stored one."""

from dataclasses import fields, replace

import pytest

from s1jax.data.examples import DataConfig
from s1jax.runtime.sharding import MeshConfig
from s1jax.train.config import NEUTRAL_FIELDS, TrainConfig, identity_of
from s1jax.train.optimizer import OptimizerConfig
from tests.support.training import make_examples

CONFIG = TrainConfig("model", "output", DataConfig("rows"))
EXAMPLES = make_examples([3, 5])


def test_the_identity_has_the_names_that_stored_runs_have():
    """A run directory of an earlier version can be resumed only as long as these names and values stay as they are."""
    assert identity_of(CONFIG, EXAMPLES, "weights") == {
        "data.max_length": 32768,
        "data.too_long": "error",
        "data.loss_on": "reasoning_and_answer",
        "data.loss_average": "sequence",
        "data.batch_size": 16,
        "data.num_epochs": 5,
        "data.seed": 42,
        "optimizer.learning_rate": 1e-5,
        "optimizer.warmup_fraction": 0.05,
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.95,
        "optimizer.epsilon": 1e-8,
        "optimizer.weight_decay": 1e-4,
        "optimizer.clip_norm": 1.0,
        "dtype": "bfloat16",
        "param_dtype": "float32",
        "lora_rank": None,
        "lora_alpha": 32.0,
        "frozen": "float",
        "training examples": EXAMPLES.fingerprint,
        "weights": "weights",
    }


def test_every_neutral_field_exists():
    names = {field.name for field in fields(TrainConfig)} | {f"data.{field.name}" for field in fields(DataConfig)}
    assert names >= NEUTRAL_FIELDS


@pytest.mark.parametrize(
    ("change", "is_neutral"),
    [
        (dict(mesh=MeshConfig(fsdp=2)), True),
        (dict(data=DataConfig("rows", num_row_lengths=1, rows_per_micro_batch=4, pack=False)), True),
        (dict(data=DataConfig("rows", seed=1)), False),
        (dict(optimizer=OptimizerConfig(beta1=0.5)), False),
        (dict(lora_rank=4), False),
    ],
)
def test_the_identity_changes_with_fields_that_affect_the_result(change, is_neutral):
    before, after = (identity_of(config, EXAMPLES, "weights") for config in (CONFIG, replace(CONFIG, **change)))
    assert (before == after) == is_neutral
