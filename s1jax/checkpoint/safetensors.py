"""The safetensors file format: named tensors with shapes and dtypes <-> one file.

A file consists of 8 bytes (the length of the header), a JSON header (dtype, shape and byte range per tensor) and the tensors' bytes
(https://github.com/huggingface/safetensors). The `safetensors` package is not used, because its numpy functions do not support float8,
and to write a file they need all its tensors in memory at once.

Invariant: reading a block of a tensor reads only the bytes of the block, and writing holds one tensor in memory at a time.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from s1jax.runtime.errors import UserError

FLOAT_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"

Block = tuple[tuple[int, int], ...]
"""Start (inclusive) and stop (exclusive) per dimension."""


class TensorInfo(NamedTuple):
    """A tensor in a file: its `nbytes` bytes begin at `offset` of `file`, in row-major order."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file by name. Raises UserError if the file is truncated or not a safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MAX_HEADER_BYTES:
            raise UserError(f"{path} is not a safetensors file: it does not start with the length of a header")
        if 8 + length > size:
            raise UserError(
                f"{path} is truncated or not a safetensors file: its header needs {8 + length} bytes, but the file has {size}"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file: its header is not a JSON object")
    tensors = {name: _info(path, 8 + length, name, entry) for name, entry in header.items() if name != METADATA_KEY}
    end = max((info.offset + info.nbytes for info in tensors.values()), default=8 + length)
    if end > size:
        raise UserError(f"{path} is truncated: its header describes {end} bytes, but the file has {size}")
    return tensors


def _info(path: Path, start: int, name: str, entry: Any) -> TensorInfo:
    """Return one entry of a header. Raises UserError if the entry is malformed; `start` is where the tensors' bytes begin."""

    def is_sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)

    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(dtype, str) and is_sizes(shape) and is_sizes(offsets) and len(offsets) == 2):
        raise UserError(f"{path}: the header's entry for {name} is malformed: {entry}")
    nbytes = offsets[1] - offsets[0]
    expected = math.prod(shape) * FLOAT_DTYPES[dtype].itemsize if dtype in FLOAT_DTYPES else nbytes
    if nbytes < 0 or nbytes != expected:
        raise UserError(f"{path}: {name} of dtype {dtype} and shape {shape} cannot take {nbytes} bytes")
    return TensorInfo(path, dtype, tuple(shape), start + offsets[0], nbytes)


def read_block(info: TensorInfo, block: Block) -> np.ndarray:
    """Read a block of a tensor, whose dtype is one of FLOAT_DTYPES. Raises UserError if the file ends early."""
    dtype = FLOAT_DTYPES[info.dtype]
    sizes = tuple(stop - start for start, stop in block)
    out = np.empty(sizes, dtype)
    if not out.size:
        return out
    strides = [math.prod(info.shape[i + 1 :]) * dtype.itemsize for i in range(len(sizes))]
    # The block is contiguous in the file from dimension `run` on, because it holds all dimensions after `run` whole.
    run = max((i for i, size in enumerate(sizes) if size != info.shape[i]), default=0)
    run_bytes = math.prod(sizes[run:]) * dtype.itemsize
    view = out.reshape(-1).view(np.uint8).data
    inner = info.offset + (block[run][0] * strides[run] if sizes else 0)
    outer = [range(start * stride, stop * stride, stride) for (start, stop), stride in zip(block, strides, strict=True)]
    file = os.open(info.file, os.O_RDONLY)
    try:
        for i, offsets in enumerate(itertools.product(*outer[:run])):
            read_exactly(file, view[i * run_bytes : (i + 1) * run_bytes], inner + sum(offsets))
    except EOFError as error:
        raise UserError(f"{info.file} was truncated while it was read") from error
    finally:
        os.close(file)
    return out


def read_exactly(file: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from `offset` of an open file. Raises EOFError if the file ends too early."""
    done = 0
    while done < len(buffer):
        count = os.preadv(file, [buffer[done:]], offset + done)
        if count == 0:
            raise EOFError
        done += count


def same_bytes(a: TensorInfo, b: TensorInfo, chunk: int = 1 << 24) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes. Holds two chunks of `chunk` bytes at a time."""
    if (a.dtype, a.shape, a.nbytes) != (b.dtype, b.shape, b.nbytes):
        return False
    with a.file.open("rb") as file_a, b.file.open("rb") as file_b:
        file_a.seek(a.offset)
        file_b.seek(b.offset)
        sizes = [min(chunk, a.nbytes - start) for start in range(0, a.nbytes, chunk)]
        return all(file_a.read(size) == file_b.read(size) for size in sizes)


def dtype_name(dtype: Any) -> str:
    """Return the name that safetensors has for a floating-point dtype. Raises UserError if it has none."""
    for name, known in FLOAT_DTYPES.items():
        if known == np.dtype(dtype):
            return name
    raise UserError(f"safetensors cannot hold dtype {np.dtype(dtype).name}; it can hold {', '.join(FLOAT_DTYPES)}")


def write_tensors(path: Path, specs: Mapping[str, tuple[str, Sequence[int]]], tensors: Iterable[np.ndarray]) -> None:
    """Write a file of tensors, and flush it to disk. `specs` gives the name, dtype and shape of each tensor, in the order of `tensors`.

    One tensor is taken from `tensors` at a time. Wider dtypes should come first, so that every tensor is aligned to its dtype.
    """
    header: dict[str, Any] = {METADATA_KEY: {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in specs.items():
        end = offset + math.prod(shape) * FLOAT_DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in zip(specs, tensors, strict=True):
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
