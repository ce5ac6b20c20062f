"""Facts about devices: platform, peak operations per second, peak memory bandwidth."""

from __future__ import annotations

import jax

# Per device, from the makers' data sheets: dense bfloat16 operations per second, and bytes per second that it reads from its memory. A key
# is the start of `jax.Device.device_kind`; the longest key that fits applies.
_PEAKS = {
    "NVIDIA A100": (312e12, 2039e9),
    "NVIDIA H100 PCIe": (756e12, 2000e9),
    "NVIDIA H100": (989e12, 3350e9),
    "NVIDIA H200": (989e12, 4800e9),
    "NVIDIA B200": (2250e12, 8000e9),
    "TPU v4": (275e12, 1228e9),
    "TPU v5 lite": (197e12, 819e9),
    "TPU v5": (459e12, 2765e9),
    "TPU v6 lite": (918e12, 1640e9),
    "TPU7x": (2307e12, 7380e9),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the peak operations per second of one device; None for an unknown device and for float32."""
    return _peaks(device_kind)[0] if dtype == "bfloat16" else None


def peak_bandwidth(device_kind: str) -> float | None:
    """Return the peak memory bandwidth of one device in bytes per second; None for an unknown device."""
    return _peaks(device_kind)[1]


def _peaks(device_kind: str) -> tuple[float | None, float | None]:
    kinds = [kind for kind in _PEAKS if device_kind.startswith(kind)]
    return _PEAKS[max(kinds, key=len)] if kinds else (None, None)


def platform() -> str:
    """Return `cpu`, `gpu` or `tpu`: the platform of the mesh set by `jax.set_mesh`, or JAX's default platform without one.

    The devices of the mesh need not exist on this machine.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
