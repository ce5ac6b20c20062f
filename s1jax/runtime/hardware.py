"""Facts about devices: platform, peak operations per second, peak memory bandwidth."""

from __future__ import annotations

import jax

# Dense bfloat16 operations per second, from the makers' data sheets. A key is the start of `jax.Device.device_kind`; the longest key
# that fits applies.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
}


# Bytes per second that a device reads from its memory, with the same keys and sources.
PEAK_BANDWIDTH = {
    "NVIDIA A100": 2039e9,
    "NVIDIA H100 PCIe": 2000e9,
    "NVIDIA H100": 3350e9,
    "NVIDIA H200": 4800e9,
    "NVIDIA B200": 8000e9,
    "TPU v4": 1228e9,
    "TPU v5 lite": 819e9,
    "TPU v5": 2765e9,
    "TPU v6 lite": 1640e9,
    "TPU7x": 7380e9,
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the peak operations per second of one device; None for an unknown device and for float32."""
    return _of_kind(PEAK_FLOPS, device_kind) if dtype == "bfloat16" else None


def peak_bandwidth(device_kind: str) -> float | None:
    """Return the peak memory bandwidth of one device in bytes per second; None for an unknown device."""
    return _of_kind(PEAK_BANDWIDTH, device_kind)


def _of_kind(table: dict[str, float], device_kind: str) -> float | None:
    kinds = [kind for kind in table if device_kind.startswith(kind)]
    return table[max(kinds, key=len)] if kinds else None


def platform() -> str:
    """Return `cpu`, `gpu` or `tpu`: the platform of the mesh set by `jax.set_mesh`, or JAX's default platform without one.

    The devices of the mesh need not exist on this machine.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
