"""`topology.py`: devices that are described, not present."""

import pytest

from s1jax.model.config import config_of_size
from s1jax.perf import topology
from s1jax.perf.topology import published_config, topology_devices


@pytest.mark.parametrize("topology", ["cpu:0", "cpu:x", "h100:0x8", "h100:8", "v5p:2x0x2", "a100:1x8"])
def test_a_topology_of_no_devices_or_of_no_kind_is_refused(topology):
    with pytest.raises(ValueError, match=f"topology is '{topology}': give h100:HOSTSxGPUS"):
        topology_devices(topology)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen2.5-32B"),
        ("Qwen/Qwen2.5-32B", "Qwen2.5-32B"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("Qwen/Qwen3-32B", "Qwen3-32B"),
        # Other shapes, experts, or a directory of that name.
        ("Qwen/Qwen3-4B-Instruct-2507", None),
        ("Qwen/Qwen3-8B-Base", None),
        ("Qwen/Qwen3-30B-A3B", None),
        ("Qwen3-0.6B", None),
    ],
)
def test_only_the_config_of_a_published_size_is_known_without_its_files(model, size, monkeypatch):
    monkeypatch.setattr(topology, "resolve_source", lambda name, weights: pytest.fail(f"read {name}"))
    if size is None:
        with pytest.raises(pytest.fail.Exception, match=f"read {model}"):
            published_config(model, "float32")
    else:
        assert published_config(model, "float32") == config_of_size(size, "float32")
