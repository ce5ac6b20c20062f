"""Which process of which run this is: environment variables -> `Launch`, or None for a run of one process.

A process must never run alone by mistake: several of them would write one output. So an incomplete or contradictory set of variables is
refused. `JAX_NUM_PROCESSES=1` runs a process alone, whatever started it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from s1jax.runtime.errors import UserError
from s1jax.runtime.terminal import shortened

Environment = Mapping[str, str]
ADDRESS, NUM_PROCESSES, PROCESS_ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"
ALONE = f"{NUM_PROCESSES}=1 runs this process alone"

_HOST_AND_PORT = r"(?:\[[^\][/\s]+\]|[^\][/:\s]+):([0-9]{1,5})"
# Variables that JAX reads while it joins the processes: what each may be, and an example.
_FORMS = {
    "JAX_COORDINATOR_PORT": (r"[0-9]{1,5}", "1234"),
    "JAX_COORDINATOR_BIND_ADDRESS": (_HOST_AND_PORT, "0.0.0.0:1234"),
    LOCAL_DEVICES: (r"[0-9]+(,[0-9]+)*", "0,1"),
    "JAX_PARTITION_INDEX": (r"[0-9]+", "0"),
}


class Launch(NamedTuple):
    """One process of a run of several."""

    address: str
    """HOST:PORT at which the first process waits for the others."""
    num_processes: int
    process_id: int
    local_device: int | None = None
    """The only GPU of its host that this process uses. None: JAX decides, which gives it one under `srun` and Open MPI 4, otherwise all."""


class _Launcher(NamedTuple):
    """A program that starts processes, and the variables that it gives to each."""

    name: str
    sizes: tuple[str, ...]
    """The number of processes is in the first of these that is set. Empty: the launcher does not tell it."""
    rank: str
    address: Callable[[Environment], str] = lambda env: ""
    """Returns where the processes meet, or "" if the variables do not tell."""
    local: tuple[str, str] | None = None
    """The number of processes on this host, and the index of this one among them."""


def _slurm_address(env: Environment) -> str:
    """The first node of a list such as `node[001-004,7],gpu2`, and a port that depends on the job."""
    nodes, job = env.get("SLURM_STEP_NODELIST", ""), env.get("SLURM_JOB_ID", "")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None or not job.isdecimal():
        return ""
    host = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])
    return f"{host}:{61440 + int(job) % 4096}"


def _open_mpi_address(env: Environment) -> str:
    """The host of `mpirun`, and a port that depends on the job. Open MPI 5 does not tell it."""
    uri = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^],]+))", env.get("OMPI_MCA_orte_hnp_uri", ""))
    return "" if uri is None else f"{uri[2] or '[' + uri[3] + ']'}:{61440 + int(uri[1]) // 4096 % 4096}"


# The innermost launcher comes first: a job of Slurm may run `mpirun`. Two that agree on size and rank are one: `srun` sets PMI_SIZE too.
_LAUNCHERS = (
    _Launcher(
        "Open MPI",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_RANK",
        _open_mpi_address,
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ),
    _Launcher(
        "MVAPICH",
        ("MV2_COMM_WORLD_SIZE",),
        "MV2_COMM_WORLD_RANK",
        local=("MV2_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ),
    _Launcher("torchrun", ("WORLD_SIZE",), "RANK", local=("LOCAL_WORLD_SIZE", "LOCAL_RANK")),
    _Launcher("MPICH or Intel MPI", ("PMI_SIZE",), "PMI_RANK", local=("MPI_LOCALNRANKS", "MPI_LOCALRANKID")),
    _Launcher(
        "jsrun",
        ("JSM_NAMESPACE_SIZE",),
        "JSM_NAMESPACE_RANK",
        local=("JSM_NAMESPACE_LOCAL_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
    ),
    _Launcher("Flux", ("FLUX_JOB_SIZE",), "FLUX_TASK_RANK"),
    _Launcher("srun", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID", _slurm_address),
    _Launcher("PMIx", (), "PMIX_RANK"),
    _Launcher("PALS", (), "PALS_RANKID"),
)


def find_launch(env: Environment) -> Launch | None:
    """Return this process's place in a run of several; None if it runs alone.

    Raises UserError that names the variable and its value, if the variables of JAX or of a launcher are incomplete or wrong.
    """
    env = {name: value.strip() for name, value in env.items() if value.strip()}
    if not {"SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"} & {*env}:
        # In a job of Slurm, but srun did not start this process.
        env = {name: value for name, value in env.items() if name not in ("SLURM_NTASKS", "SLURM_PROCID")}
    for name, (form, example) in _FORMS.items():
        if name in env and not re.fullmatch(form, env[name]):
            raise UserError(f"{name} is {shortened(env[name])}: it must look like {example}")
    if env.get(NUM_PROCESSES) == "1" and env.get(PROCESS_ID, "0") == "0":
        return None
    if NUM_PROCESSES in env or PROCESS_ID in env:
        _require(env, ADDRESS, NUM_PROCESSES, PROCESS_ID)
        return Launch(_checked(env[ADDRESS]), *_place(env, NUM_PROCESSES, PROCESS_ID))
    places = _places(env)
    if not places and ADDRESS in env:
        _require(env, ADDRESS, NUM_PROCESSES, PROCESS_ID)
    if not places or max(places.values())[0] == 1:
        return None
    launcher, place = next((launcher, place) for launcher, place in places.items() if place[0] > 1)
    address = next((where for other in places if places[other] == place and (where := other.address(env))), "")
    if ADDRESS in env:
        address = env[ADDRESS]
    elif not address:
        raise UserError(
            f"{launcher.name} started this process as {place[1]} of {place[0]} ({launcher.rank}={place[1]}), but not at which free "
            f"port they meet: set {ADDRESS}=HOST:PORT, the host of process 0 and a free port, on each; {ALONE}"
        )
    elif "JAX_COORDINATOR_PORT" in env:
        address = f"{address.rpartition(':')[0]}:{env['JAX_COORDINATOR_PORT']}"
    return Launch(_checked(address), *place, _local_device(env, launcher))


def _places(env: Environment) -> dict[_Launcher, tuple[int, int]]:
    """Return the launchers that started this process, each with the number of processes and the index of this one.

    Raises UserError if there are variables of launchers, but no launcher's are complete.
    """
    places, incomplete = {}, []
    for launcher in _LAUNCHERS:
        size = next((name for name in launcher.sizes if name in env), None)
        if size and _number(env, size, 1) == 1:
            places[launcher] = (1, 0)
        elif size and launcher.rank in env:
            places[launcher] = _place(env, size, launcher.rank)
        elif size or launcher.rank in env:
            incomplete.append((size or launcher.rank, launcher.rank if size else "".join(launcher.sizes[:1])))
    if incomplete and not places:
        name, missing = incomplete[0]
        what = f"{missing} is not set" if missing else "nothing tells how many processes there are"
        raise UserError(
            f"{name}={shortened(env[name], quotes=False)}, but {what}: "
            f"set {ADDRESS}, {NUM_PROCESSES} and {PROCESS_ID} on each process; {ALONE}"
        )
    return places


def _local_device(env: Environment, launcher: _Launcher) -> int | None:
    """Return the GPU of a process that shares its host with others, unless a variable gives it its own GPUs already."""
    has_own = LOCAL_DEVICES in env or re.fullmatch("[^,]+", env.get("CUDA_VISIBLE_DEVICES", ""))
    if has_own or launcher.local is None or not {*launcher.local} <= {*env}:
        return None
    number, index = _place(env, *launcher.local)
    return index if number > 1 else None


def _require(env: Environment, *names: str) -> None:
    """Raise UserError unless all of these variables are set."""
    given = " and ".join(f"{name}={shortened(env[name], quotes=False)}" for name in names if name in env)
    if missing := [name for name in names if name not in env]:
        raise UserError(f"{given} without {' and '.join(missing)}: set all three, or none; {ALONE}")


def _place(env: Environment, size: str, rank: str) -> tuple[int, int]:
    num_processes, process_id = _number(env, size, 1), _number(env, rank, 0)
    if process_id >= num_processes:
        raise UserError(f"{rank} is {process_id}: it must be below {num_processes}, the value of {size}")
    return num_processes, process_id


def _number(env: Environment, name: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", env[name]) or int(env[name]) < least:
        raise UserError(f"{name} is {shortened(env[name])}: it must be a whole number, at least {least}")
    return int(env[name])


def _checked(address: str) -> str:
    host_and_port = re.fullmatch(_HOST_AND_PORT, address)
    if host_and_port is None or not 0 < int(host_and_port[1]) < 2**16:
        raise UserError(
            f"{ADDRESS} is {shortened(address)}: it must be HOST:PORT, such as 10.0.0.1:1234, with a port from 1 to {2**16 - 1}"
        )
    return address
