"""One step, compared with torch and with itself under other packings, micro-batches, backends, meshes and numbers of processes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from s1jax.checkpoint.export import save_hf
from s1jax.checkpoint.source import load_model, resolve_source
from s1jax.model import lora
from s1jax.model.config import LoraConfig
from s1jax.model.qwen2 import graphdef
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train.optimizer import learning_rate, make_optimizer
from s1jax.train.step import (
    StepConfig,
    abstract_batch,
    abstract_state,
    init_state,
    make_loss_step,
    make_train_step,
    to_device,
)
from tests.support.training import CONFIG, OPTIMIZER, PACKED, RULES, make_packer, params_on, run_steps

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def reference():
    return run_steps()


def assert_same_run(run, reference):
    np.testing.assert_allclose(run[0], reference[0], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run[1], reference[1])


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(batches=dict(rows_per_micro_batch=1)), marks=pytest.mark.slow),
        dict(batches=dict(rows_per_micro_batch=3)),
        pytest.param(dict(batches=dict(pad_multiple=1)), marks=pytest.mark.slow),
        dict(batches=PACKED),
        pytest.param(dict(batches=PACKED | dict(row_length=None)), marks=pytest.mark.slow),
        dict(batches=PACKED | dict(row_length=512, rows_per_micro_batch=3)),
        dict(loss_chunk=24, remat="none"),
        pytest.param(dict(remat="dots", batches=PACKED), marks=pytest.mark.slow),
        pytest.param(dict(remat="attention", batches=PACKED), marks=pytest.mark.slow),
        dict(attention="pallas", batches=PACKED | dict(row_length=256)),
        dict(attention="splash", batches=PACKED | dict(row_length=256)),
        dict(offload_optimizer=True),
        pytest.param(dict(mesh_config=MeshConfig(fsdp=8)), marks=pytest.mark.slow),
        pytest.param(dict(mesh_config=MeshConfig(fsdp=8), batches=PACKED), marks=pytest.mark.slow),
        dict(mesh_config=MeshConfig(data=2, fsdp=2, tensor=2), batches=dict(rows_per_micro_batch=4)),
        pytest.param(
            dict(mesh_config=MeshConfig(data=2, fsdp=1, sequence=2, tensor=2), batches=PACKED), marks=pytest.mark.slow
        ),
        dict(mesh_config=MeshConfig(fsdp=2, sequence=4), batches=PACKED | dict(row_length=256)),
    ],
    ids=str,
)
def test_the_split_of_the_work_changes_no_step(changes, reference):
    assert_same_run(run_steps(**changes), reference)


def gradients(packer, step):
    """The loss of a step's examples, and its gradient, as the training step computes them."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = params_on(mesh)
    # The update of plain gradient descent with a learning rate of 1 is the gradient itself.
    optimizer = optax.sgd(1.0)
    with jax.set_mesh(mesh):
        train_step = make_train_step(CONFIG, RULES, optimizer, StepConfig(), packer.config.pack)
        state, metrics = train_step(
            init_state(optimizer, jax.tree.map(jnp.copy, params), mesh), {}, to_device(packer[step], mesh, RULES)
        )
    return float(metrics["loss"]), jax.tree.map(lambda a, b: a - b, params, state.params)


def one_by_one(loss_average, step):
    """The same loss and gradient by hand: each example alone, with the weight that `loss_average` gives it."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = params_on(mesh)
    packer = make_packer()
    indices = packer.steps[step]
    counts = packer.num_targets[indices]
    shares = counts / counts.sum() if loss_average == "token" else np.full(len(indices), 1 / len(indices))
    total = (0.0, jax.tree.map(jnp.zeros_like, params))

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params, tokens, mask):
        model = nnx.merge(graphdef(CONFIG, RULES, "stacked"), params)
        hidden, _ = model(tokens[None], jnp.arange(len(tokens))[None], jnp.ones((1, len(tokens)), jnp.int32))
        losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden)[0, :-1], tokens[1:])
        return jnp.sum(losses * mask[1:]) / jnp.sum(mask[1:])

    for index, share in zip(indices, shares, strict=True):
        # Padding after an example does not change its loss.
        tokens, mask = (np.pad(x, (0, 128 - len(x))) for x in packer.examples[index])
        total = jax.tree.map(lambda a, b, share=share: a + share * b, total, mean_loss(params, tokens, mask))
    return float(total[0]), total[1]


@pytest.mark.integration
@pytest.mark.parametrize("loss_average", ["sequence", "token"])
def test_packed_padded_and_single_examples_give_the_same_loss_and_gradients(loss_average):
    alone = one_by_one(loss_average, 1)
    for changes, counts in (
        (dict(pack=False), [1]),
        (PACKED | dict(num_row_lengths=2), [2, 1]),
        (PACKED | dict(rows_per_micro_batch=2), [1, 0, 1]),
    ):
        packer = make_packer(loss_average=loss_average, **changes)
        assert [int(arrays["num_micro_batches"]) for arrays in packer[1]] == counts
        together = gradients(packer, 1)
        np.testing.assert_allclose(together[0], alone[0], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together[1], alone[1])


@pytest.mark.integration
def test_steps_equal_torch(tmp_path, reference):
    """The same weights, batches and recipe in transformers with torch.optim.AdamW."""
    import torch
    from transformers import AutoModelForCausalLM

    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = params_on(mesh)
    first = jax.device_get(params)
    save_hf(tmp_path / "hf", CONFIG, params, "float32", None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    no_decay = [p for n, p in model.named_parameters() if "bias" in n or "norm" in n]
    decay = [p for n, p in model.named_parameters() if not ("bias" in n or "norm" in n)]
    groups = [dict(params=decay, weight_decay=0.1), dict(params=no_decay, weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    schedule = learning_rate(OPTIMIZER, 6)
    packer = make_packer()
    for step in range(4):
        batch = {name: torch.tensor(x[0]) for name, x in packer[step][0].items() if x.ndim}
        logits = model(batch["tokens"].long(), attention_mask=batch["segment_ids"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].long().flatten(), reduction="none"
        )
        loss = (losses * batch["loss_weights"].flatten()).sum()
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        adamw.step()
        np.testing.assert_allclose([loss.item(), norm.item()], reference[0][step], rtol=1e-4)
        assert norm > OPTIMIZER.clip_norm and (step == 0 or adamw.param_groups[0]["lr"] > 1e-3)
    model.save_pretrained(tmp_path / "torch")
    _, trained = load_model(resolve_source(tmp_path / "torch"), mesh, RULES, "stacked", dtype="float32")

    def moved_alike(path, ours, theirs, start):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(ours, theirs, atol=3e-5, err_msg=name)
        assert np.abs(theirs - start).max() > 5e-3, name

    jax.tree_util.tree_map_with_path(moved_alike, reference[1], jax.device_get(trained), first)


@pytest.mark.integration
def test_bfloat16_state_follows_float32(reference):
    config = replace(CONFIG, dtype="bfloat16")
    metrics, params = run_steps(config=config, param_dtype="bfloat16")
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
    np.testing.assert_allclose(metrics[:, 0], reference[0][:, 0], rtol=5e-3)


@pytest.mark.integration
def test_the_loss_without_gradients_is_that_of_the_step(reference):
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    params = params_on(mesh)
    with jax.set_mesh(mesh):
        loss = make_loss_step(CONFIG, RULES, StepConfig())
        np.testing.assert_allclose(
            [float(loss(params, {}, to_device(make_packer(**c)[0], mesh, RULES))) for c in (PACKED, {})],
            [reference[0][0, 0]] * 2,
            rtol=1e-5,
        )


@pytest.mark.integration
def test_adapters_alone_are_trained_and_hold_all_the_state():
    config = replace(CONFIG, lora=LoraConfig(rank=4))
    mesh = make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])
    frozen = params_on(mesh)
    before = jax.device_get(frozen)
    optimizer = make_optimizer(OPTIMIZER, 6)
    packer = make_packer(4, **PACKED)
    with jax.set_mesh(mesh):
        state = init_state(optimizer, lora.init_adapters(config, RULES, mesh, 0), mesh)
        step = make_train_step(config, RULES, optimizer, StepConfig())
        losses = []
        for i in (0, 0, 0, 0):
            state, metrics = step(state, frozen, to_device(packer[i], mesh, RULES))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[1] == losses[0], "step 0 has no learning rate yet"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), before)
    num_adapters, num_weights = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, frozen))
    assert num_adapters < 0.5 * num_weights
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) < 2 * num_adapters + 10


@pytest.mark.integration
def test_shorter_micro_batches_share_the_memory_of_longer_ones():
    """A single micro-batch does not depend on the loop's counter, so XLA would move it out of the loop if the step let it."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    optimizer = make_optimizer(OPTIMIZER, 6)
    target = abstract_state(optimizer, params_on(mesh), mesh)
    temporaries = []
    for num_row_lengths in (1, 3):
        packer = make_packer(**PACKED | dict(num_row_lengths=num_row_lengths, rows_per_micro_batch=2))
        assert len(packer.shapes) == num_row_lengths
        with jax.set_mesh(mesh):
            step = make_train_step(CONFIG, RULES, optimizer, StepConfig())
            compiled = step.lower(target, {}, abstract_batch(packer.shapes, mesh, RULES)).compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporaries[1] < 1.5 * temporaries[0], "measured: a factor of 1.4, and 1.8 outside of the loop"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("loss_chunk", 0, "at least 1"), ("remat", "some", "one of none, dots"), ("attention", "cpu", "one of xla")],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ValueError, match=f"{field} is .*{value}.*: .*{message}"):
        StepConfig(**{field: value})


TWO_PROCESSES = """
import sys
import jax
import numpy as np
from s1jax.runtime.processes import start_processes
from s1jax.runtime.sharding import MeshConfig
from tests.support.training import PACKED, run_steps
start_processes()
# Neighbours along tensor are devices of different processes.
devices = np.array(jax.devices()).reshape(2, 4).T.ravel()
mesh = MeshConfig(data=2, fsdp=2, tensor=2)
metrics, _ = run_steps(num_steps=2, mesh_config=mesh, devices=devices, gather=False, batches=PACKED)
print("metrics", *metrics.ravel())
"""


@pytest.mark.integration
def test_two_processes_equal_one_when_rows_span_them(reference, processes):
    for output in processes.run_two("-c", TWO_PROCESSES):
        lines = [line.split()[1:] for line in output.splitlines() if line.startswith("metrics")]
        assert len(lines) == 1, output
        np.testing.assert_allclose(np.array(lines[0], float), reference[0][:2].ravel(), rtol=2e-5)
