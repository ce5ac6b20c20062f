"""`launchers.py`: which variables make a process one of several, and which are refused."""

import re

import pytest

from s1jax.runtime.errors import UserError
from s1jax.runtime.launchers import Launch, find_launch

JAX = dict(JAX_COORDINATOR_ADDRESS="host:1234", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
SRUN = dict(SLURM_JOB_ID="4711", SLURM_STEP_NODELIST="gpu[07-11,20]x,cpu3", SLURM_NTASKS="4", SLURM_PROCID="3")
MPI = dict(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="2")
HERE = dict(JAX_COORDINATOR_ADDRESS="host:1234")
TORCHRUN = dict(WORLD_SIZE="8", RANK="6", LOCAL_WORLD_SIZE="4", LOCAL_RANK="2")


def without(env, *names):
    return {name: value for name, value in env.items() if name not in names}


@pytest.mark.parametrize(
    ("env", "launch"),
    [
        ({}, None),
        (JAX, ("host:1234", 2, 1)),
        (JAX | dict(JAX_COORDINATOR_ADDRESS="[::1]:1234"), ("[::1]:1234", 2, 1)),
        (JAX | SRUN, ("host:1234", 2, 1)),
        (dict(JAX_NUM_PROCESSES="1"), None),
        (SRUN | MPI | dict(JAX_NUM_PROCESSES="1"), None),
        (dict(JAX_COORDINATOR_ADDRESS="", JAX_NUM_PROCESSES=" "), None),
        (SRUN, ("gpu07x:62055", 4, 3)),
        (SRUN | dict(SLURM_STEP_NODELIST="a1,a2", JAX_COORDINATOR_PORT="77"), ("a1:77", 4, 3)),
        (SRUN | dict(SLURM_STEP_NODELIST="r[1-2]n[3-4]"), ("r1n3:62055", 4, 3)),
        (SRUN | HERE, ("host:1234", 4, 3)),
        # A shell in an allocation of 4 tasks, and a batch script that does not use srun.
        (SRUN | dict(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", PMIX_RANK="0"), None),
        (without(SRUN, "SLURM_STEP_NODELIST"), None),
        (SRUN | dict(PMI_SIZE="4", PMI_RANK="3", PMIX_RANK="3"), ("gpu07x:62055", 4, 3)),
        (MPI | dict(OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"), ("10.96.0.1:62624", 4, 2)),
        (MPI | dict(OMPI_MCA_orte_hnp_uri="1314521088.0;tcp6://[fe80::b9b,2620::2]:4337"), ("[fe80::b9b]:62880", 4, 2)),
        (MPI | HERE, ("host:1234", 4, 2)),
        (dict(OMPI_COMM_WORLD_SIZE="1", PMIX_RANK="0"), None),
        (dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="29500") | HERE, ("host:1234", 2, 1)),
        (dict(RANK="0", WORLD_SIZE="1"), None),
    ],
)
def test_variables_say_which_of_how_many_processes_this_is(env, launch):
    assert find_launch(env) == (launch and Launch(*launch))


@pytest.mark.parametrize(
    ("env", "device"),
    [
        (TORCHRUN, 2),
        (TORCHRUN | SRUN | dict(SLURM_LOCALID="0"), 2),
        (TORCHRUN | dict(CUDA_VISIBLE_DEVICES="4,5,6,7"), 2),
        # It has all devices of its host, or its own already.
        (TORCHRUN | dict(LOCAL_WORLD_SIZE="1", LOCAL_RANK="0"), None),
        (TORCHRUN | dict(JAX_LOCAL_DEVICE_IDS="0,1"), None),
        (TORCHRUN | dict(CUDA_VISIBLE_DEVICES="GPU-8a0f"), None),
        (MPI | dict(OMPI_COMM_WORLD_LOCAL_SIZE="2", OMPI_COMM_WORLD_LOCAL_RANK="0"), 0),
        (MPI, None),
        (dict(MV2_COMM_WORLD_SIZE="4", MV2_COMM_WORLD_RANK="3", MV2_COMM_WORLD_LOCAL_SIZE="2", MV2_COMM_WORLD_LOCAL_RANK="1"), 1),
        (dict(PMI_SIZE="4", PMI_RANK="3", MPI_LOCALNRANKS="2", MPI_LOCALRANKID="1"), 1),
        (dict(JSM_NAMESPACE_SIZE="4", JSM_NAMESPACE_RANK="3", JSM_NAMESPACE_LOCAL_SIZE="2", JSM_NAMESPACE_LOCAL_RANK="1"), 1),
        # JAX reads SLURM_LOCALID itself.
        (SRUN | dict(SLURM_LOCALID="1"), None),
        (SRUN | dict(SLURM_LOCALID="1", PMI_SIZE="4", PMI_RANK="3"), None),
    ],
)  # fmt: skip
def test_a_process_that_shares_its_host_takes_the_gpu_of_its_index_there(env, device):
    launch = find_launch(env | HERE)
    assert launch is not None and launch.local_device == device


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (without(JAX, "JAX_COORDINATOR_ADDRESS"), "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=1 without JAX_COORDINATOR_ADDRESS: set"),
        (HERE, "JAX_COORDINATOR_ADDRESS=host:1234 without JAX_NUM_PROCESSES and JAX_PROCESS_ID: set all three"),
        (JAX | dict(JAX_NUM_PROCESSES="x"), "JAX_NUM_PROCESSES is 'x': it must be a whole number, at least 1"),
        (JAX | dict(JAX_NUM_PROCESSES="0"), "JAX_NUM_PROCESSES is '0'"),
        (JAX | dict(JAX_NUM_PROCESSES="2" * 5000), "JAX_NUM_PROCESSES is '2222"),
        (JAX | dict(JAX_PROCESS_ID="-1"), "JAX_PROCESS_ID is '-1'"),
        (JAX | dict(JAX_PROCESS_ID="5"), "JAX_PROCESS_ID is 5: it must be below 2, the value of JAX_NUM_PROCESSES"),
        *((JAX | dict(JAX_COORDINATOR_ADDRESS=address), f"JAX_COORDINATOR_ADDRESS is {address!r}: it must be HOST:PORT")
          for address in ("host", "host:", ":1234", "host:0", "host:70000", "http://host:1", "::1:1234", "a b:1")),
        (JAX | dict(JAX_LOCAL_DEVICE_IDS="a"), "JAX_LOCAL_DEVICE_IDS is 'a': it must look like 0,1"),
        (JAX | dict(JAX_COORDINATOR_BIND_ADDRESS="1234"), "JAX_COORDINATOR_BIND_ADDRESS is '1234': it must look like 0.0.0.0:1234"),
        (SRUN | dict(JAX_COORDINATOR_PORT="x"), "JAX_COORDINATOR_PORT is 'x': it must look like 1234"),
        (TORCHRUN | HERE | dict(LOCAL_RANK="4"), "LOCAL_RANK is 4: it must be below 4, the value of LOCAL_WORLD_SIZE"),
        (SRUN | dict(SLURM_PROCID="4"), "SLURM_PROCID is 4: it must be below 4, the value of SLURM_NTASKS"),
        (without(SRUN, "SLURM_PROCID"), "SLURM_NTASKS=4, but SLURM_PROCID is not set"),
        (MPI, "Open MPI started this process as 2 of 4 (OMPI_COMM_WORLD_RANK=2), but not at which free port they meet: set JAX_COORD"),
        (MPI | dict(OMPI_COMM_WORLD_SIZE="four"), "OMPI_COMM_WORLD_SIZE is 'four'"),
        (dict(RANK="1", WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="29500"), "torchrun started this process as 1 of 2 (RANK=1)"),
        (dict(WORLD_SIZE="2", MASTER_ADDR="a"), "WORLD_SIZE=2, but RANK is not set"),
        (dict(PMI_SIZE="2", PMI_RANK="0"), "MPICH or Intel MPI started this process as 0 of 2 (PMI_RANK=0)"),
        (SRUN | dict(PMI_SIZE="8", PMI_RANK="3"), "MPICH or Intel MPI started this process as 3 of 8"),
        (dict(PMIX_RANK="0"), "PMIX_RANK=0, but nothing tells how many processes there are: set JAX_COORDINATOR_ADDRESS"),
    ],
)  # fmt: skip
def test_variables_that_are_incomplete_or_wrong_are_named_with_their_values(env, message):
    with pytest.raises(UserError, match="^" + re.escape(message)) as error:
        find_launch(env)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
