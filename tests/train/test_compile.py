"""The training step of a config, which the run, the preflight and the benchmark share."""

from dataclasses import replace

import jax
import pytest

from s1jax.data.examples import DataConfig
from s1jax.data.packing import Packer
from s1jax.perf.training import worst_case_shapes
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train.compile import training_program
from s1jax.train.config import TrainConfig
from s1jax.train.step import to_device
from tests.support.training import CONFIG, OPTIMIZER, make_examples, params_on

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = DataConfig("rows", max_length=64, batch_size=4, num_epochs=1, pad_multiple=8)
TRAIN = TrainConfig("model", "output", DATA, OPTIMIZER, MeshConfig(fsdp=4, sequence=2), dtype="float32")


def program_of(config=TRAIN):
    return training_program(config, CONFIG, make_mesh(config.mesh, jax.devices()), num_steps=6)


@pytest.mark.integration
def test_a_step_compiles_ahead_for_the_batches_it_is_given():
    program = program_of()
    examples = make_examples([40, 9, 20, 31, 8, 8])
    examples = replace(examples, tokens=examples.tokens % CONFIG.vocab_size)
    packer = Packer(examples, DATA, *program.batch_shards())
    compiled = program.lower_step(packer.shapes).compile()
    with jax.set_mesh(program.mesh):
        state = program.init_state(params_on(program.mesh))
        for i in range(len(packer)):
            state, _ = compiled(state, {}, to_device(packer[i], program.mesh, TRAIN.rules))
    assert int(state.step) == len(packer) == 2
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, program.state)


@pytest.mark.parametrize("lengths", [[64] * 16, [64, 33, 32, 1, 5, 64], [20, 21, 22, 23]])
@pytest.mark.parametrize("pack", [True, False])
def test_the_preflights_step_is_at_least_as_large_as_every_step_of_a_run(lengths, pack):
    program = program_of(replace(TRAIN, data=replace(DATA, pack=pack, batch_size=16)))
    packer = Packer(make_examples(lengths), program.config.data, *program.batch_shards())
    largest, *shorter = worst_case_shapes(program)
    num_positions = {
        shape.row_length: shape.max_micro_batches * shape.rows_per_micro_batch * shape.row_length
        for shape in packer.shapes
    }
    whole = largest.max_micro_batches * largest.rows_per_micro_batch * largest.row_length
    assert max(num_positions) <= largest.row_length
    assert sum(num_positions.values()) <= whole + sum(
        shape.rows_per_micro_batch * shape.row_length for shape in shorter
    )


def test_the_length_of_a_run_does_not_change_the_shapes_of_its_state():
    mesh = make_mesh(TRAIN.mesh, jax.devices())
    short, long = (training_program(TRAIN, CONFIG, mesh, num_steps).state for num_steps in (1, 1000))
    assert short == long
