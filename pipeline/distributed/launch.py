"""Who this process is and where the ranks meet, from the environment that a launcher gives it. No torch.

| started by            | ranks                                      | where they meet                              |
|-----------------------|--------------------------------------------|----------------------------------------------|
| deepspeed, torchrun   | RANK, WORLD_SIZE, LOCAL_RANK               | MASTER_ADDR, MASTER_PORT                     |
| mpirun of Open MPI    | OMPI_COMM_WORLD_RANK and so on             | rank 0 tells the others through MPI (mpi4py) |
| mpiexec of MPICH      | PMI_RANK and so on                         | the same                                     |
| srun                  | SLURM_PROCID, SLURM_STEP_NUM_TASKS and ... | first host of the step, port from the job id |
| nothing               | one rank                                   | 127.0.0.1                                    |

MASTER_ADDR and MASTER_PORT, where they are set, are what counts.
"""

import os
import socket
import subprocess
from dataclasses import dataclass

from pipeline.distributed.interface import own_address_towards
from pipeline.errors import UserError

VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # a step's: plain batch shells have SLURM_NTASKS too
)
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below those that systems give to outgoing connections


@dataclass(frozen=True)
class LaunchedRank:
    """Process `rank` of `world_size`, the `local_rank`-th of its machine."""

    rank: int
    world_size: int
    local_rank: int


def find_rank() -> LaunchedRank:
    """A process started alone is rank 0 of 1."""
    for rank, world_size, local_rank in VARIABLES:
        if rank in os.environ and world_size in os.environ:
            number = int(os.environ[rank])
            return LaunchedRank(number, int(os.environ[world_size]), int(os.environ.get(local_rank, number)))
    return LaunchedRank(0, 1, 0)


def adopt_launcher() -> LaunchedRank:
    """Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, whatever the launcher. Collective under MPI.

    Raises:
        UserError: there are several ranks, and nothing says where they meet.
    """
    place = find_rank()
    found = {"RANK": place.rank, "WORLD_SIZE": place.world_size, "LOCAL_RANK": place.local_rank}
    os.environ.update({name: str(number) for name, number in found.items()})
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        host, port = _meeting_point(place)
        os.environ.setdefault("MASTER_ADDR", host)
        os.environ.setdefault("MASTER_PORT", str(port))
    return place


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _meeting_point(place: LaunchedRank) -> tuple[str, int]:
    if place.world_size == 1:
        return "127.0.0.1", free_port()
    nodes = os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_JOB_NODELIST"))
    if nodes is not None:
        job, step = (int(os.environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        try:
            host = _first_host(nodes)
        except (OSError, subprocess.CalledProcessError) as error:
            raise _cannot_meet(place, f"scontrol, which knows the hosts of {nodes}, failed ({error})") from error
        return host, _FIRST_PORT + (job * 101 + step) % _NUM_PORTS
    if {"OMPI_COMM_WORLD_RANK", "PMI_RANK"} & os.environ.keys():
        return _agree_through_mpi(place)
    raise _cannot_meet(place, "neither is set")


def _first_host(nodes: str) -> str:
    """Of a list as node[1-3,7]."""
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0]


def _agree_through_mpi(place: LaunchedRank) -> tuple[str, int]:
    """The first rank's address towards another host, 127.0.0.1 if all are on its own, and a port that is free there."""
    try:
        from mpi4py import MPI  # joins the job: only where mpiexec has started one
    except (ImportError, RuntimeError) as error:  # not installed, or without an MPI library
        raise _cannot_meet(place, f"mpi4py, which could tell, cannot be imported ({error})") from error
    world = MPI.COMM_WORLD
    if world.size != place.world_size:
        raise _cannot_meet(place, f"mpi4py's MPI library, not that of this mpiexec, sees {world.size}")
    hosts = world.allgather(socket.gethostname())
    others = [host for host in hosts if host != hosts[0]]
    address = (own_address_towards(others[0]) or hosts[0]) if others else "127.0.0.1"
    return world.bcast((address, free_port()) if place.rank == 0 else None)


def _cannot_meet(place: LaunchedRank, why: str) -> UserError:
    return UserError(
        f"{place.world_size} ranks were started, and nothing says where they meet: {why}; set MASTER_ADDR to the first "
        f"rank's host and MASTER_PORT to a free port there, the same for all"
    )
