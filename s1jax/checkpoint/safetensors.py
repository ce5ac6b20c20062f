"""The safetensors file format: named tensors with shapes and dtypes <-> one file.

A file consists of 8 bytes (the length of the header), a JSON header (dtype, shape and byte range per tensor) and the tensors' bytes
(https://github.com/huggingface/safetensors). The `safetensors` package only checks headers here, because its numpy functions do not support
float8, and to write a file they need all its tensors in memory at once.

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
from safetensors import SafetensorError, safe_open

from s1jax.runtime.errors import UserError

FLOAT_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
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
    """Return the tensors of a file by name. Raises UserError unless its header is sound and its tensors fill it."""
    try:
        with safe_open(path, "numpy"):  # checks the whole header, and that the tensors fill the file
            pass
    except SafetensorError as error:
        raise UserError(
            f"{path} is truncated, has bytes behind its data, or is no safetensors file: {error}"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop(METADATA_KEY, None)
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = TensorInfo(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, stop - start)
    return tensors


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


def same_bytes(a: TensorInfo, b: TensorInfo) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    bytes_a, bytes_b = (np.memmap(info.file, np.uint8, "r", info.offset, (info.nbytes,)).data for info in (a, b))
    return bytes_a == bytes_b


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
