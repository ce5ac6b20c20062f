"""`training.py`: the compiled training step, on this machine always, on H100s and TPUs if their compilers are installed."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import jax
import pytest

from configs.s1_32b import CONFIG as S1_32B
from s1jax.data.packing import Shape
from s1jax.model.config import config_of_size
from s1jax.perf.compiled import array_bytes
from s1jax.perf.topology import topology_devices
from s1jax.perf.training import check_train
from s1jax.runtime.files import ROOT
from s1jax.runtime.sharding import MeshConfig, make_mesh
from s1jax.train.compile import TrainingProgram, training_program
from tests.support.compiling import SMALL, compile_on, needs

pytestmark = pytest.mark.integration


def test_a_mesh_of_three_devices_gathers_no_weights():
    config = replace(SMALL, num_heads=3, num_kv_heads=3, embed_dim=192, mlp_dim=768, vocab_size=768)
    compiled = compile_on(config, "cpu:3", MeshConfig(fsdp=1, tensor=3), 2, 64, 256)
    shapes = re.findall(r"= (\w+\[[\d,]*\])\S* all-gather", compiled.as_text())
    assert all(array_bytes(shape) < 4 * 192 * 192 for shape in shapes), shapes


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_more_devices_than_key_value_heads_rematerialise_nothing_in_training(family):
    data = replace(S1_32B.data, max_length=1024, num_row_lengths=1)
    config = replace(S1_32B, mesh=MeshConfig(sequence=4), data=data, dtype="float32")
    figures = check_train(config, replace(SMALL, family=family), "cpu:8")
    assert figures["involuntary_rematerialisations"] == 0


@pytest.mark.parametrize(("frozen", "family"), [("int8", "qwen2"), ("nf4", "qwen2"), ("nf4", "qwen3")])
def test_adapters_over_stored_weights_are_checked(frozen, family):
    data = replace(S1_32B.data, max_length=256, num_row_lengths=1)
    config = replace(S1_32B, mesh=MeshConfig(), data=data, lora_rank=4, frozen=frozen, dtype="float32")
    assert check_train(config, replace(SMALL, family=family), "cpu:1")["micro_batches"] == 16


def test_a_training_config_is_checked_from_the_command_line(tiny_model):
    command = [sys.executable, ROOT / "launch" / "preflight.py", "s1_0_5b"]
    command += ["--topology", "cpu:1", "--model", tiny_model, "--data.max-length", "256", "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    # Parameters, two moments of each, and counters, all float32. 16 micro-batches of one long example each, and a shorter micro-batch.
    num_params = 264 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 64 + 32 + 32) + 32
    shape = {
        name: figures[name] for name in ("micro_batches", "rows_per_micro_batch", "row_length", "shorter_row_lengths")
    }
    assert list(shape.values()) == [16, 1, 256, [128]], shape
    state, batch = 12 * num_params, 5 * 4 * (16 * 256 + 128)
    assert figures["state_gib"] == pytest.approx((state + batch) / 2**30, rel=1e-3)
    assert figures["involuntary_rematerialisations"] == 0


def test_a_step_that_is_too_large_for_its_compiler_is_one_sentence(monkeypatch):
    """TPU compilers give up with an error. (GPU compilers report the need.)"""

    def lower_step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it needs 33.1G of 31.25G hbm.\nLargest allocations: ...")

    monkeypatch.setattr(TrainingProgram, "lower_step", lower_step)
    config = replace(S1_32B, mesh=MeshConfig())
    with pytest.raises(ValueError, match=r"^the step does not fit cpu:1: .*33\.1G of 31\.25G hbm\.$"):
        check_train(config, SMALL, "cpu:1")


BF16 = dict(param_dtype="bfloat16")


@pytest.mark.slow
@needs("jax_cuda12_plugin")
def test_a_gpu_adds_up_gradients_in_one_order():
    mesh = make_mesh(MeshConfig(), topology_devices("h100:1x1"))
    config = replace(S1_32B, mesh=MeshConfig())
    compiled = training_program(config, SMALL, mesh, num_steps=100).lower_step([Shape(2, 1, 256)], "cuda").compile()
    scattered = re.findall(r"= \S+ scatter\(.*", compiled.as_text())
    assert scattered and all("unique_indices=true" in line for line in scattered), scattered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "changes", "gib"),
    [
        pytest.param("h100:2x8", {}, 65, marks=needs("jax_cuda12_plugin")),
        pytest.param(
            "h100:2x8",
            dict(mesh=MeshConfig(), data=replace(S1_32B.data, pack=False)),
            65,
            marks=needs("jax_cuda12_plugin"),
        ),
        pytest.param("h100:1x8", BF16, 71, marks=needs("jax_cuda12_plugin")),
        pytest.param("v5p:2x2x4", {}, 95, marks=needs("libtpu")),
        pytest.param("v6e:4x8", {}, 31.25, marks=needs("libtpu")),
    ],
    ids=["h100", "h100, a row for each example", "8 h100, bfloat16 state", "v5p", "v6e"],
)
def test_the_recipe_for_thirty_two_billion_fits(topology, changes, gib):
    figures = check_train(replace(S1_32B, **changes), config_of_size("Qwen2.5-32B"), topology)
    print(figures)
    assert figures["fits"] and figures["total_gib"] <= gib and figures["involuntary_rematerialisations"] == 0
