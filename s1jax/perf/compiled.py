"""Facts about a compiled program: the memory it needs, the arrays it writes in loops, and the compiler's warnings."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax

from s1jax.perf.topology import MEMORY
from s1jax.runtime.errors import UserError

# XLA's warning that it copies a whole array to every device, because it found no better way from one sharding to another.
REMATERIALISATION = "Involuntary full rematerialization"


def to_gib(num_bytes: float) -> float:
    """Return bytes in GiB, to four digits."""
    return float(f"{num_bytes / 2**30:.4g}")


def mesh_text(devices: jax.sharding.Mesh) -> str:
    """Return a mesh as text, such as `data 1 x fsdp 16 x sequence 1 x tensor 1`."""
    return " x ".join(f"{axis} {size}" for axis, size in devices.shape.items())


def memory_of(compiled: jax.stages.Compiled) -> Any:
    """Return the compiler's `memory_analysis`, in bytes per device. Raises UserError if the compiler has none."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError("this platform's compiler does not report how much memory a program needs")
    return memory


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a program needs on each device, according to its compiler.

    Outputs that reuse the memory of an argument (`alias`) count once. Raises UserError if the compiler does not report memory.
    """
    memory = memory_of(compiled)
    return (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip


def memory_figures(compiled: jax.stages.Compiled, topology: str, arguments: str) -> dict[str, Any]:
    """Return what a program needs of each device's memory in GiB, and whether it fits the topology (None if the limit is unknown).

    `arguments` is the name of the figure for the program's arguments.
    """
    memory, total, limit = memory_of(compiled), needed_bytes(compiled), MEMORY.get(topology.partition(":")[0])
    return {
        arguments: to_gib(memory.argument_size_in_bytes),
        "temporaries_gib": to_gib(memory.temp_size_in_bytes),
        "total_gib": to_gib(total),
        "memory_gib": None if limit is None else to_gib(limit),
        "fits": None if limit is None else total < limit,
    }


@contextlib.contextmanager
def explain_lack_of_room(topology: str) -> Iterator[None]:
    """Turn a compiler's error about too little memory into a UserError. TPU compilers raise one; GPU compilers only report the need."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"the step does not fit {topology}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def stderr_to_text() -> Iterator[Callable[[], str]]:
    """Capture standard error, including what compilers write from C++, and pass it on at the end.

    Yields a function that returns the captured text after the block.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        caught = ""
        try:
            yield lambda: caught
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            caught = file.read().decode(errors="replace")
            sys.stderr.write(caught)


def written_in_loops(compiled: jax.stages.Compiled) -> list[tuple[str, str, int]]:
    """Return (name, kind, bytes) of every array that an instruction in a loop's body writes, the largest first.

    Branches of conditionals in the body count as parts of it. In-place updates of a slice are left out, because they write only the slice.
    """
    text = compiled.as_text() or ""
    computations = {
        match[1]: match[0] for match in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^}", text, re.MULTILINE | re.DOTALL)
    }
    written = []
    in_loops = set(re.findall(r"body=%?([\w.\-]+)", text))
    unread = list(in_loops)
    while unread:
        for line in computations[unread.pop()].splitlines()[1:]:
            listed = re.search(r"branch_computations=\{(.*?)\}", line)
            branches = re.findall(r"[\w.\-]+", listed[1]) if listed else []
            branches += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            unread += set(branches) - in_loops
            in_loops |= set(branches)
            match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(", line)
            if not match or match[3] in ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional"):
                continue
            called = re.search(r"calls=%?([\w.\-]+)", line)
            root = re.search(r"ROOT .*", computations[called[1]]) if called else match
            if root and "dynamic-update-slice(" not in root[0]:
                written += [
                    (match[1], match[3], array_bytes(shape)) for shape in re.findall(r"\w+\[[\d,]*\]", match[2])
                ]
    return sorted(written, key=lambda item: -item[2])


def array_bytes(shape: str) -> int:
    """Return the bytes of an array whose shape XLA writes as, for example, `bf16[8,128]`."""
    dtype, dims = shape.rstrip("]").split("[")
    bits = int(re.sub(r"\D.*", "", dtype.lstrip("bfsu")) or 8)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
