"""Fixtures shared by all tests: eight fake CPU devices, and the real data and model where they are at hand."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"
# Many tests, and the processes they start, compile the same programs; workers of one run share what they compiled.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="s1jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import numpy as np
import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

# In these packages and modules, calls in this process check types and shapes against annotations. An int counts as a float.
DECODE = ("batch", "budget", "engine", "loaded", "loop", "prefill", "sampling", "scheduler", "score")
CHECKED = [
    "s1jax.ops",
    "s1jax.model",
    "s1jax.train.optimizer",
    "s1jax.data.packing",
    *(f"s1jax.decode.{name}" for name in DECODE),
]
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from tests.support.endpoint import serve  # noqa: E402, F401
from tests.support.processes import processes  # noqa: E402, F401

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="seed of the fixture `rng`; a failure report shows it")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of a test, a function of `--seed`."""
    seed = request.config.getoption("--seed")
    request.node.add_report_section("setup", "seed", f"run again with --seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def messages_reach_caplog() -> None:
    """Undoes what an earlier test's `run_command` did: `caplog` listens to the root logger."""
    for name in ("s1jax", "data_tools"):
        logging.getLogger(name).propagate = True


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without most optimisations, in this process and those it starts: for modules that compare within a tolerance.

    Not for those that promise the same tokens of different programs: there, optimisations are what could break the promise.
    """
    import jax

    if jax.default_backend() != "cpu":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips a test (marked `device`, too) where JAX runs on no GPU: these are run by `JAX_PLATFORMS=cuda python -m pytest -m device`."""
    import jax

    if jax.default_backend() != "gpu":
        pytest.skip(f"JAX runs on {jax.default_backend()}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real questions and the real Qwen2.5 tokenizer that lies beside some checkouts."""
    path = ROOT.parent / "shared"
    if not (path / "qwen2.5-tokenizer" / "tokenizer.json").exists():
        pytest.skip(f"no real data at {path}")
    return path


@pytest.fixture(scope="session")
def qwen_tokenizer(shared):
    """The real Qwen2.5 tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "qwen2.5-tokenizer")


@pytest.fixture(scope="session")
def real_model(shared) -> Path:
    """A real pretrained 135M chat model as a Qwen2 checkpoint, fetched once per machine."""
    path = ROOT / ".cache" / "smollm2-135m"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / "fetch.lock"):
        if not (path / "config.json").exists():
            subprocess.run([sys.executable, shared / "tools" / "fetch_real_model.py", path], check=True)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A Hugging Face checkpoint of a random two-layer model over bytes, with 512 positions."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"), "qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory) -> str:
    """The same as `tiny_model`, of Qwen3's family."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_qwen3"), "qwen3")


def write_tiny_model(directory: Path, family: str) -> str:
    import jax

    from s1jax.checkpoint.export import save_hf
    from s1jax.model.config import ModelConfig
    from s1jax.runtime.sharding import MeshConfig, make_mesh
    from tests.support.models import random_params
    from tests.support.tokenizers import byte_tokenizer

    config = ModelConfig(
        vocab_size=264, embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4,
        rms_norm_eps=1e-6, max_position_embeddings=512, tie_word_embeddings=True, family=family, dtype="float32",
    )  # fmt: skip
    byte_tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>").save_pretrained(directory / "tokenizer")
    params = random_params(config, "stacked", make_mesh(MeshConfig()))
    # Larger weights than at initialisation, so that logits differ and every id, the ends included, comes up.
    params = jax.tree.map(lambda x: x * 4 if x.ndim > 1 else x, params)
    save_hf(directory / "hf", config, params, "float32", directory / "tokenizer")
    return str(directory / "hf")
