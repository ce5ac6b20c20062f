"""What a compiled program tells about itself: memory, what it writes in loops, warnings of the compiler."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax

from s1jax.runtime.errors import UserError

REMATERIALISATION = "Involuntary full rematerialization"


def to_gib(num_bytes: float) -> float:
    """Return bytes in GiB, to four digits."""
    return float(f"{num_bytes / 2**30:.4g}")


def mesh_text(devices: jax.sharding.Mesh) -> str:
    """Return a mesh in words, as `data 1 x fsdp 16 x sequence 1 x tensor 1`."""
    return " x ".join(f"{axis} {size}" for axis, size in devices.shape.items())


@contextlib.contextmanager
def explain_lack_of_room(topology: str) -> Iterator[None]:
    """Raise UserError where a compiler, as those for TPU, gives up for lack of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"the step does not fit {topology}: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def stderr_to_text() -> Iterator[Callable[[], str]]:
    """Catch what is written to standard error, by compilers too; pass it on at the end. Yields what returns it, then."""
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
    """Return the name, the kind and the bytes of every array that an instruction of a loop's body writes, the largest first.

    Branches of its conditionals count too. In-place updates of a slice are left out: they write the slice only.
    """
    text = compiled.as_text() or ""
    computations = {
        match[1]: match[0] for match in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^}", text, re.MULTILINE | re.DOTALL)
    }
    written = []
    run = set(re.findall(r"body=%?([\w.\-]+)", text))
    left = list(run)
    while left:
        for line in computations[left.pop()].splitlines()[1:]:
            branches = re.search(r"branch_computations=\{(.*?)\}", line)
            called_next = re.findall(r"[\w.\-]+", branches[1]) if branches else []
            called_next += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
            left += set(called_next) - run
            run |= set(called_next)
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
    """Return the size of an array of such a shape as `bf16[8,128]`."""
    dtype, dims = shape.rstrip("]").split("[")
    bits = int(re.sub(r"\D.*", "", dtype.lstrip("bfsu")) or 8)
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
