"""`topology.py`: devices that are described, not present."""

import pytest

from s1jax.perf.topology import topology_devices


@pytest.mark.parametrize("topology", ["cpu:0", "cpu:x", "h100:0x8", "h100:8", "v5p:2x0x2", "a100:1x8"])
def test_a_topology_of_no_devices_or_of_no_kind_is_refused(topology):
    with pytest.raises(ValueError, match=f"topology is '{topology}': give h100:HOSTSxGPUS"):
        topology_devices(topology)
