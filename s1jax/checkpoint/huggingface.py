"""The weights of a Hugging Face Qwen2 or Qwen3 checkpoint <-> the sharded parameter tree of `model/qwen2.py`, in either layout.

`LAYER_WEIGHTS` and the constants after it serve both directions. Import handles one tensor at a time: each process reads the blocks that
its devices hold, as parts of a global array in Hugging Face's layout, which the devices rearrange. Export does the reverse.

Invariants: a process reads only bytes that its devices hold, and has at most one tensor in host memory. If the dtype does not change,
every bit survives (`ops/bits.py`). If it changes, a finite number that it cannot hold is an error.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from s1jax.checkpoint import safetensors
from s1jax.checkpoint.foreign import form_of_tensors
from s1jax.checkpoint.safetensors import FLOAT_DTYPES, Block, TensorInfo, read_block
from s1jax.model.config import ModelConfig
from s1jax.model.lora import Merged
from s1jax.model.qwen2 import Layout, Params, abstract_params
from s1jax.model.storage import LeafPath, Storage, quantize_leaf
from s1jax.ops.bits import as_bits, check_range, narrows
from s1jax.runtime.command import counted, listed
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import write_file
from s1jax.runtime.processes import is_first_process
from s1jax.runtime.progress import progress
from s1jax.runtime.sharding import ShardingRules

INDEX_NAME = "model.safetensors.index.json"
FILE_NAME = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000


class Weight(NamedTuple):
    """One row of the table. `dims` is "ours -> theirs", where `NH` without a space means that theirs merges our N and H."""

    hf_name: str
    path: str
    dims: str
    family: str | None = None
    """The only family that has the weight; None if both have it."""

    def groups(self) -> list[list[int]]:
        """Return, for each Hugging Face dimension, the indices of our dimensions that it merges."""
        ours, theirs = self.dims.split(" -> ")
        return [[ours.split().index(letter) for letter in group] for group in theirs.split()]


# Letters: D embed, F mlp, V vocab, N query heads, K key/value heads, H head dim.
LAYER_WEIGHTS = tuple(
    Weight(f"model.layers.{{}}.{hf_name}", path, *rest)
    for hf_name, path, *rest in (
        ("input_layernorm.weight", "input_layernorm.weight", "D -> D"),
        ("self_attn.q_proj.weight", "self_attn.q_proj.kernel", "N H D -> NH D"),
        ("self_attn.q_proj.bias", "self_attn.q_proj.bias", "N H -> NH", "qwen2"),
        ("self_attn.q_norm.weight", "self_attn.q_norm.weight", "H -> H", "qwen3"),
        ("self_attn.k_proj.weight", "self_attn.k_proj.kernel", "K H D -> KH D"),
        ("self_attn.k_proj.bias", "self_attn.k_proj.bias", "K H -> KH", "qwen2"),
        ("self_attn.k_norm.weight", "self_attn.k_norm.weight", "H -> H", "qwen3"),
        ("self_attn.v_proj.weight", "self_attn.v_proj.kernel", "K H D -> KH D"),
        ("self_attn.v_proj.bias", "self_attn.v_proj.bias", "K H -> KH", "qwen2"),
        ("self_attn.o_proj.weight", "self_attn.o_proj.kernel", "D N H -> D NH"),
        ("post_attention_layernorm.weight", "post_attention_layernorm.weight", "D -> D"),
        ("mlp.gate_proj.weight", "mlp.gate_proj.kernel", "F D -> F D"),
        ("mlp.up_proj.weight", "mlp.up_proj.kernel", "F D -> F D"),
        ("mlp.down_proj.weight", "mlp.down_proj.kernel", "D F -> D F"),
    )
)
EMBEDDING = Weight("model.embed_tokens.weight", "embed_tokens.weight", "V D -> V D")
NORM = Weight("model.norm.weight", "norm.weight", "D -> D")
LM_HEAD = Weight("lm_head.weight", "lm_head.kernel", "V D -> V D")
# Some older exports hold these buffers. The model computes them from the config.
IGNORED_SUFFIX = "rotary_emb.inv_freq"


class Slot(NamedTuple):
    """The place of one Hugging Face tensor: the path of a leaf in our tree, and the index of its layer if the leaf is a stack."""

    hf_name: str
    weight: Weight
    path: LeafPath
    layer: int | None

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tensor's Hugging Face shape, from the shape of our leaf."""
        ours = shape if self.layer is None else shape[1:]
        return tuple(math.prod(ours[i] for i in group) for group in self.weight.groups())

    def hf_sharding(self, sharding: NamedSharding) -> NamedSharding:
        """Return the sharding of Hugging Face's layout that puts the same numbers on each device as `sharding` does for our leaf."""
        axes = (*sharding.spec[0 if self.layer is None else 1 :], None, None, None)
        # Only the first of several merged dimensions is ever sharded. Otherwise the blocks would not be contiguous.
        return NamedSharding(sharding.mesh, PartitionSpec(*(axes[group[0]] for group in self.weight.groups())))


def slots(config: ModelConfig, layout: Layout) -> Iterator[Slot]:
    """Yield the slots of a model's tensors, in the order in which the model computes with them."""

    def alone(weight: Weight) -> Slot:
        return Slot(weight.hf_name, weight, tuple(weight.path.split(".")), None)

    yield alone(EMBEDDING)
    for layer in range(config.num_layers):
        for weight in (weight for weight in LAYER_WEIGHTS if weight.family in (None, config.family)):
            place, index = (("layers",), layer) if layout == "stacked" else (("layers", layer), None)
            yield Slot(weight.hf_name.format(layer), weight, (*place, *weight.path.split(".")), index)
    yield alone(NORM)
    if not config.tie_word_embeddings:
        yield alone(LM_HEAD)


@functools.lru_cache(maxsize=256)
def _importer(target: jax.ShapeDtypeStruct):
    """Return a jitted function: (stack or None, Hugging Face's tensor, layer or None) -> our leaf. A stack is updated in place."""

    def run(stack, x, layer):
        bits = as_bits(x.astype(target.dtype)).reshape(target.shape if layer is None else target.shape[1:])
        if layer is not None:
            held = jnp.zeros(target.shape, bits.dtype) if stack is None else as_bits(stack)
            bits = jax.lax.dynamic_update_index_in_dim(held, bits, layer, 0)
        return jax.lax.bitcast_convert_type(bits, target.dtype)

    return jax.jit(run, donate_argnums=0, out_shardings=target.sharding)


@functools.lru_cache(maxsize=256)
def _exporter(hf_shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None):
    """Return a jitted function: (leaf, layer or None) -> bits of the tensor in Hugging Face's layout."""

    def run(leaf, layer):
        bits = as_bits(leaf)
        if layer is not None:
            bits = jax.lax.dynamic_index_in_dim(bits, layer, 0, keepdims=False)
        if leaf.dtype != dtype:
            bits = as_bits(jax.lax.bitcast_convert_type(bits, leaf.dtype).astype(dtype))
        return bits.reshape(hf_shape)

    return jax.jit(run, out_shardings=sharding)


def find_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Return a directory's tensors by name.

    Raises one UserError with all problems of its files: absent, corrupt, truncated, or with other tensors than the index says.
    """
    if (directory / FILE_NAME).is_file():
        return safetensors.read_header(directory / FILE_NAME)
    index = directory / INDEX_NAME
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(weight_map.values()), key=Path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not JSON with a weight_map from tensor names to file names: {error!r}") from error
    tensors: dict[str, TensorInfo] = {}
    problems = []
    if absent := [file for file in files if Path(file).name != file or not (directory / file).is_file()]:
        problems.append(
            f"{len(absent)} of the {counted(len(files), 'file')} that {INDEX_NAME} names are absent ({', '.join(absent[:8])}): "
            "download the model again"
        )
    for file in (file for file in files if file not in absent):
        names = {name for name, holder in weight_map.items() if holder == file}
        try:
            header = safetensors.read_header(directory / file)
        except UserError as error:
            problems.append(str(error))
            continue
        lost, extra = sorted(names - set(header)), sorted(set(header) - names)
        problems += [f"the index places {name} in {file}, which does not hold it" for name in lost]
        problems += [f"{file} holds {name}, which the index does not place there" for name in extra]
        tensors |= header
    raise_problems(directory, problems)
    return tensors


def raise_problems(directory: Path, problems: list[str]) -> None:
    """Raise one UserError that lists the problems of a directory's weights, if there are any."""
    if len(problems) == 1:
        raise UserError(f"cannot load {directory}: {problems[0]}")
    if problems:
        raise UserError(f"cannot load {directory}: {len(problems)} problems{listed(problems)}")


def find_differences(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> list[str]:
    """Return one message for each array that is missing, unexpected or misshapen. Arrays are given by name and shape."""
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in wanted]
    shapes = [(name, list(found[name]), list(shape)) for name, shape in wanted.items() if name in found]
    problems += [
        f"{name} has shape {ours}, the config asks for {shape}" for name, ours, shape in shapes if ours != shape
    ]
    return problems


def check_tensors(
    directory: Path, config: ModelConfig, target: Params, param_dtype: str | None
) -> dict[str, TensorInfo]:
    """Return the tensors of a directory that a stacked `target` tree needs, by Hugging Face name.

    Raises one UserError with all problems of files (`find_tensors`); or with the form of a model that is not read (`foreign.py`); or with
    missing, unexpected and misshapen tensors, and dtypes that cannot be loaded in `param_dtype`. In a tied model, `lm_head.weight` is
    accepted if it equals the embedding byte for byte.
    """
    tensors = {name: info for name, info in find_tensors(directory).items() if not name.endswith(IGNORED_SUFFIX)}
    if form := form_of_tensors(directory, tensors):
        raise UserError(f"cannot load {directory}: {form}")
    needed = {slot.hf_name: slot for slot in slots(config, "stacked")}
    problems = []
    if config.tie_word_embeddings and LM_HEAD.hf_name in tensors:
        copy, embedding = tensors.pop(LM_HEAD.hf_name), tensors.get(EMBEDDING.hf_name)
        if embedding is None or not safetensors.same_bytes(copy, embedding):
            problems.append("lm_head.weight differs from the embedding, but the config ties them (tie_word_embeddings)")
    leaves = flatten_dict(target)
    shapes = {name: slot.hf_shape(leaves[slot.path].shape) for name, slot in needed.items()}
    problems += find_differences({name: info.shape for name, info in tensors.items()}, shapes)
    dtypes: dict[str, set[str]] = {}
    for name, dtype in [(name, tensors[name].dtype) for name in needed if name in tensors]:
        if dtype in FLOAT_DTYPES:
            dtypes.setdefault(needed[name].weight.hf_name, set()).add(dtype)
        else:
            problems.append(f"{name} has dtype {dtype}; only {', '.join(FLOAT_DTYPES)} are read")
    if param_dtype is None:
        problems += [
            f"{name.format('*')} has dtypes {', '.join(sorted(found))}; name one dtype to load it in"
            for name, found in dtypes.items()
            if len(found) > 1
        ]
        if any("F64" in found for found in dtypes.values()):
            problems.append("dtype F64 cannot be kept; name a dtype to load it in")
    raise_problems(directory, problems)
    return tensors


def read_tensor(name: str, info: TensorInfo, sharding: NamedSharding, cast: str | None = None) -> jax.Array:
    """Read a tensor as a global array: each process reads the blocks of its own devices, once. The host converts to `cast`, if given."""

    def block_of(index: tuple[slice, ...] | None) -> Block:
        assert index is not None
        return tuple(s.indices(size)[:2] for s, size in zip(index, info.shape, strict=True))

    def volume(block: Block) -> int:
        return math.prod(stop - start for start, stop in block)

    blocks = {block_of(index) for index in sharding.addressable_devices_indices_map(info.shape).values()}
    # If the blocks fill a box without gaps, the whole box is read, because fewer and longer reads are faster.
    box = tuple((min(b[i][0] for b in blocks), max(b[i][1] for b in blocks)) for i in range(len(info.shape)))
    if sum(map(volume, blocks)) == volume(box):
        data = read_block(info, box)
        parts = {b: data[tuple(slice(s - o, e - o) for (s, e), (o, _) in zip(b, box, strict=True))] for b in blocks}
    else:
        parts = {b: read_block(info, b) for b in blocks}
    if cast is not None:
        for part in parts.values():
            check_range(name, part, cast)
        parts = {b: part.astype(cast) for b, part in parts.items()}
    return jax.make_array_from_callback(info.shape, sharding, lambda index: parts[block_of(index)])


def import_weights(
    directory: Path,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    rules: ShardingRules,
    layout: Layout,
    param_dtype: str | None,
    store: Storage | None = None,
) -> Params:
    """Load the safetensors of a directory onto a mesh, in `param_dtype` (None: each tensor's own dtype).

    With `store`, matrices are quantized one parameter at a time: one layer's, or a stack of all layers. Raises one UserError with all
    problems of the tensors (`check_tensors`), or a UserError if the dtype cannot hold a number.
    """
    tensors = check_tensors(directory, config, abstract_params(config, rules, "stacked", mesh), param_dtype)
    target = flatten_dict(abstract_params(config, rules, layout, mesh))
    params: dict[LeafPath, jax.Array] = {}
    with _bar(sum(info.nbytes for info in tensors.values()), "load") as bar:
        # In the stacked layout, one stack is filled before the next begins.
        for slot in sorted(slots(config, layout), key=lambda slot: slot.path if layout == "stacked" else ()):
            info, leaf = tensors[slot.hf_name], target[slot.path]
            dtype = jnp.dtype(param_dtype or FLOAT_DTYPES[info.dtype])
            leaf = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
            # JAX has no float64 by default, so the host rounds it, once.
            cast = param_dtype if info.dtype == "F64" else None
            x = read_tensor(slot.hf_name, info, slot.hf_sharding(leaf.sharding), cast)
            check_range(slot.hf_name, x, dtype)
            # Without this wait the host would read ahead of the devices and hold many tensors.
            params[slot.path] = jax.block_until_ready(_importer(leaf)(params.pop(slot.path, None), x, slot.layer))
            del x
            if store is not None and slot.layer in (None, config.num_layers - 1):
                params |= quantize_leaf(slot.path, params.pop(slot.path), store)
            bar.update(info.nbytes)
    return unflatten_dict(params)


def export_weights(directory: Path, config: ModelConfig, params: Params, dtype: str | None) -> str:
    """Write parameters of either layout as safetensors: one file, or shards of at most MAX_SHARD_BYTES with an index.

    `dtype` None keeps each array's dtype. All processes gather each tensor, and process 0 writes it. Returns the numpy name of the
    embedding's dtype. Raises UserError, before anything is written, if safetensors has no such dtype or the dtype cannot hold a number.
    """
    found = list(slots(config, "per_layer" if 0 in params["layers"] else "stacked"))
    leaves = flatten_dict(params)
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    sizes: dict[str, int] = {}
    for slot in found:
        leaf = leaves[slot.path]
        name = safetensors.dtype_name(dtype or leaf.dtype)
        specs[slot.hf_name] = name, slot.hf_shape(leaf.shape)
        sizes[slot.hf_name] = math.prod(specs[slot.hf_name][1]) * FLOAT_DTYPES[name].itemsize
        if narrows(leaf.dtype, FLOAT_DTYPES[name]):
            check_range(slot.hf_name, _array(leaf), FLOAT_DTYPES[name], slot.layer)
    shards: list[list[Slot]] = [[]]
    for slot in found:
        if shards[-1] and sum(sizes[s.hf_name] for s in shards[-1]) + sizes[slot.hf_name] > MAX_SHARD_BYTES:
            shards.append([])
        shards[-1].append(slot)
    files = [FILE_NAME]
    if len(shards) > 1:
        files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    with _bar(sum(sizes.values()), "save") as bar:
        for file, shard in zip(files, shards, strict=True):
            # Wider dtypes come first, so that every tensor is aligned. The sort is stable.
            shard.sort(key=lambda slot: -FLOAT_DTYPES[specs[slot.hf_name][0]].itemsize)

            def gathered(shard: list[Slot] = shard) -> Iterator[np.ndarray]:
                for slot in shard:
                    yield _gather(slot, _array(leaves[slot.path]), FLOAT_DTYPES[specs[slot.hf_name][0]])
                    bar.update(sizes[slot.hf_name])

            if is_first_process():
                safetensors.write_tensors(directory / file, {s.hf_name: specs[s.hf_name] for s in shard}, gathered())
            else:
                for _ in gathered():
                    pass
    if is_first_process() and len(shards) > 1:
        weight_map = {slot.hf_name: file for file, shard in zip(files, shards, strict=True) for slot in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_file(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")
    return FLOAT_DTYPES[specs[EMBEDDING.hf_name][0]].name


def _array(leaf: jax.Array | Merged) -> jax.Array:
    return leaf.compute() if isinstance(leaf, Merged) else leaf


def _gather(slot: Slot, leaf: jax.Array, dtype: np.dtype) -> np.ndarray:
    """Return one whole tensor in Hugging Face's layout, on every process."""
    sharding = slot.hf_sharding(leaf.sharding) if isinstance(leaf.sharding, NamedSharding) else None
    x = _exporter(slot.hf_shape(leaf.shape), dtype, sharding)(leaf, slot.layer)
    bits = np.asarray(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
    return bits.view(dtype)


def _bar(num_bytes: int, description: str):
    """Return a progress bar that counts bytes. It appears only if the work takes longer than 3 seconds."""
    return progress(num_bytes, description, "B", hidden=not is_first_process(), unit_scale=True, delay=3)
