"""Device meshes with the axes `data, fsdp, sequence, tensor`, and shardings of arrays with named dimensions (`batch`, `heads`, ...).

Invariants: the mesh always has four axes, so one set of rules serves a laptop (1 x 1 x 1 x 1) and a pod. A dimension is replicated if the
sizes of its mesh axes do not divide it, so that three key/value heads run on eight devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import check_types

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
# Names that occur together in one array; a mesh axis can split only one of them.
TOGETHER = (
    ("embed", "heads"), ("embed", "kv_heads"), ("embed", "mlp"), ("embed", "vocab"),
    ("batch", "length", "heads"), ("batch", "length", "kv_heads"),
)  # fmt: skip


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. One may be -1: it takes the devices that the others leave. (In decoding two may: `share_out`.)"""

    data: int = 1
    """Replicas of the weights; the batch is split over them."""
    fsdp: int = -1
    """Shards of weights and optimizer state; the batch is split over these too."""
    sequence: int = 1
    """Shards of the sequence length, and more shards of weights and optimizer state. With `tensor`, it must divide the heads."""
    tensor: int = 1
    """Shards of heads, of the MLP and of the vocabulary."""


DECODING_MESH = MeshConfig(data=-1, fsdp=1, tensor=-1)


@dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each named dimension; an empty tuple replicates it."""

    batch: tuple[str, ...] = ("data", "fsdp")
    length: tuple[str, ...] = ("sequence",)
    embed: tuple[str, ...] = ("fsdp", "sequence")
    heads: tuple[str, ...] = ("tensor",)
    kv_heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)

    def num_shards(self, name: str, mesh_shape: Mapping[str, int]) -> int:
        """Return the number of shards of a dimension on a mesh, provided that its size is divisible by that number."""
        return math.prod(mesh_shape[axis] for axis in getattr(self, name))

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            for axis in getattr(self, field.name):
                if axis not in MESH_AXES:
                    raise UserError(f'{field.name}: "{axis}" is not a mesh axis; the axes are {", ".join(MESH_AXES)}')
        for names in TOGETHER:
            axes = [axis for name in names for axis in getattr(self, name)]
            if twice := {axis for axis in axes if axes.count(axis) > 1}:
                raise UserError(
                    f"{' and '.join(names)}: mesh axis {min(twice)} is used twice, but can split only one dimension of an array"
                )

    def axes(
        self, names: Sequence[str | None], shape: Sequence[int], mesh_shape: Mapping[str, int]
    ) -> list[tuple[str, ...]]:
        """Return, for each dimension of an array, the mesh axes that split it; a dimension with the name None is replicated."""
        return [
            getattr(self, name) if name and size % self.num_shards(name, mesh_shape) == 0 else ()
            for name, size in zip(names, shape, strict=True)
        ]

    def spec(self, names: Sequence[str | None], shape: Sequence[int], mesh_shape: Mapping[str, int]) -> PartitionSpec:
        """Return the result of `axes` as a partition spec."""
        return PartitionSpec(*[axes or None for axes in self.axes(names, shape, mesh_shape)])


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh over `devices` (default: all). Raises UserError if the product of the sizes is not their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    shown = " x ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {shown}: every size must be positive, and at most one may be -1")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise UserError(f"mesh {shown} does not fit {len(devices)} devices: the sizes must multiply to that number")
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def share_out(config: MeshConfig, num_kv_heads: int, num_devices: int) -> MeshConfig:
    """Return the mesh for decoding: if `data` and `tensor` are both -1, `tensor` takes as many devices as divide the key/value heads.

    With more devices in `tensor`, each device would hold and compute the caches of all heads.
    """
    if (config.data, config.tensor) != (-1, -1):
        return config
    return replace(config, tensor=math.gcd(num_kv_heads, num_devices // max(1, config.fsdp * config.sequence)))


def sharding_for(mesh: Mesh, rules: ShardingRules, names: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
    """Return the sharding of an array with this shape and these names of dimensions.

    On one device all arrays have the same sharding. Otherwise a program whose results become its arguments would be compiled twice.
    """
    return NamedSharding(mesh, rules.spec(names, shape, mesh.shape) if mesh.size > 1 else PartitionSpec())


def constrain(x: jax.Array, rules: ShardingRules, *names: str | None) -> jax.Array:
    """Constrain the sharding of an intermediate array on the mesh of `jax.set_mesh`. Without a mesh, or on one device, do nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec(names, x.shape, mesh.shape))
