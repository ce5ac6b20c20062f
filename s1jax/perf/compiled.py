"""Facts about a compiled program: the memory it needs, the arrays it writes in loops, and the compiler's warnings."""

import contextlib
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax

from s1jax.perf.measure import timed
from s1jax.perf.topology import MEMORY
from s1jax.runtime.errors import UserError

# The lines of an alarm that XLA writes in a frame of asterisks.
_ALARM = re.compile(
    r"^(?:.*slow_operation_alarm\.cc.*|\*+|.*Very slow compile\?.*|The operation took .*)\n+", re.MULTILINE
)
# XLA's warning that it copies a whole array to every device, because it found no better way from one sharding to another.
REMATERIALISATION = "Involuntary full rematerialization"


def to_gib(num_bytes: float) -> float:
    """Return bytes in GiB, to four digits."""
    return float(f"{num_bytes / 2**30:.4g}")


def needed_bytes(compiled: Any) -> int:
    """Return the bytes that a program needs on each device, by its compiler's `memory_analysis`.

    Outputs that reuse the memory of an argument (`alias`) count once.
    """
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip


def compile_for(
    topology: str, mesh: jax.sharding.Mesh, compile_step: Callable[[], Any], arguments: str
) -> tuple[Any, dict[str, Any]]:
    """Compile a step for a topology. Return the program, and what it needs of each device's memory in GiB.

    `fits` is None if the memory of the topology is unknown. `arguments` is the name of the figure for the program's arguments. Raises
    UserError if the step does not fit and the compiler gives up for that reason, as TPU compilers do; GPU compilers only report the need.
    """
    try:
        compile_s, compiled = timed(compile_step)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"the step does not fit {topology}: {str(error).splitlines()[0]}") from error
    memory, total, limit = compiled.memory_analysis(), needed_bytes(compiled), MEMORY.get(topology.partition(":")[0])
    return compiled, {
        "topology": topology,
        "devices": mesh.size,
        "mesh": " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        arguments: to_gib(memory.argument_size_in_bytes),
        "temporaries_gib": to_gib(memory.temp_size_in_bytes),
        "total_gib": to_gib(total),
        "memory_gib": None if limit is None else to_gib(limit),
        "fits": None if limit is None else total < limit,
        "compile_s": round(compile_s, 1),
    }


@contextlib.contextmanager
def captured_stderr() -> Iterator[io.StringIO]:
    """Capture standard error, including what compilers write from C++. At the end, put it into the yielded text.

    It is also passed on, except for XLA's alarm about slow compilation.
    """
    sys.stderr.flush()
    original, text = os.dup(2), io.StringIO()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield text
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            text.write(file.read())
            sys.stderr.write(_ALARM.sub("", text.getvalue()))


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
