"""Process group set-up and the two exchanges between ranks that control flow needs.

Works under the deepspeed launcher, torchrun, and as one plain process: the launchers' environment variables
(RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) are read, and made up for a process started alone.
NCCL on CUDA, gloo elsewhere.
"""

import logging
import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import deepspeed.ops
import numpy as np
import torch
import torch.distributed as dist

from pipeline.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Who this process is. Data parallel only: every rank holds its own samples."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_distributed() -> Ranks:
    """Joins the process group; call once a process, before anything else of DeepSpeed."""
    environment = os.environ
    if "RANK" not in environment:  # started alone
        environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    environment.setdefault("LOCAL_RANK", environment["RANK"])
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))
    else:
        skip_shm_op()
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed's calls, not ours: one line per rank and collective otherwise.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    deepspeed.init_distributed(dist_backend="nccl" if on_cuda else "gloo", auto_mpi_discovery=False, verbose=False)
    device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def leave_distributed() -> None:
    """Leaves the process group together: a rank that just exits can make the others abort in gloo's threads."""
    dist.barrier()
    dist.destroy_process_group()


def skip_shm_op() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives on CPU.

    The compilation takes minutes, and a process killed meanwhile leaves a lock that hangs every later run. gloo
    does the same work. The attribute is private to DeepSpeed, hence the pinned version and a test.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def gather_rows(values: Sequence[float], ranks: Ranks) -> np.ndarray:
    """Every rank's `values` as float64 [world_size, len(values)], the same on all ranks. Collective."""
    mine = torch.tensor(values, dtype=torch.float64, device=ranks.device)
    rows = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    dist.all_gather(rows, mine)
    return torch.stack(rows).cpu().numpy()


def gather_objects(value: Any, ranks: Ranks) -> list[Any]:
    """Every rank's `value` (picklable), in rank order. Collective."""
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def raise_together(error: UserError | None, ranks: Ranks) -> None:
    """Raises the lowest failed rank's error on every rank, so that none waits for one that is gone. Collective.

    Raises:
        UserError: `error` of the first rank that has one.
    """
    for rank, message in enumerate(gather_objects(None if error is None else str(error), ranks)):
        if message is not None:
            raise UserError(message if rank == ranks.rank else f"{message} (found by rank {rank})") from error
