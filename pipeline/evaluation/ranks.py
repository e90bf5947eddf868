"""Who this process is, from the launcher's environment alone: evaluation needs no process group."""

import os
from dataclasses import dataclass

# torchrun and deepspeed, Open MPI, MPICH.
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # a step's: plain batch shells have SLURM_NTASKS too
)


@dataclass(frozen=True)
class EvaluationRank:
    """Process `rank` of `world_size`, the `local_rank`-th of its machine."""

    rank: int
    world_size: int
    local_rank: int


def find_rank() -> EvaluationRank:
    """A process started alone is rank 0 of 1."""
    for rank, world_size, local_rank in VARIABLES:
        if rank in os.environ and world_size in os.environ:
            number = int(os.environ[rank])
            return EvaluationRank(number, int(os.environ[world_size]), int(os.environ.get(local_rank, number)))
    return EvaluationRank(0, 1, 0)
