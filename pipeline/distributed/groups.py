"""Process group set-up and the two exchanges between ranks that control flow needs.

Works under every launcher that pipeline/distributed/launch.py knows, and as one plain process. NCCL on CUDA, gloo
elsewhere.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import deepspeed
import deepspeed.ops
import numpy as np
import torch
import torch.distributed as dist

from pipeline.distributed.clock import PhaseClock
from pipeline.distributed.device import choose_device, tell_deepspeed
from pipeline.distributed.interface import choose_gloo_interface
from pipeline.distributed.launch import adopt_launcher
from pipeline.distributed.ulysses import SequenceGroup
from pipeline.errors import UserError, note_left_distributed


@dataclass(frozen=True)
class Ranks:
    """Who this process is: one of the `sequence` group's ranks, which hold their samples together, and that group is
    number `dp_rank` of `dp_size`. `clock` times what it does."""

    rank: int
    world_size: int
    device: torch.device
    sequence: SequenceGroup
    clock: PhaseClock

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dp_rank(self) -> int:
        return self.rank // self.sequence.size

    @property
    def dp_size(self) -> int:
        return self.world_size // self.sequence.size


def init_distributed(sequence_parallel_size: int = 1, timeout_s: float = 1800) -> Ranks:
    """Joins the process group; call once a process, before anything else of DeepSpeed.

    Args:
        sequence_parallel_size: consecutive ranks that hold a sample together; divides their number.
        timeout_s: after which an exchange that some rank does not come to fails.

    Raises:
        UserError: there are several ranks, and nothing says where they meet.
    """
    place, timeout = adopt_launcher(), timedelta(seconds=timeout_s)
    device = choose_device(place.local_rank)
    tell_deepspeed(device)
    on_cuda = device.type == "cuda"
    if not on_cuda:
        skip_shm_op()
        choose_gloo_interface()
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # DeepSpeed's calls, not ours: one line per rank and collective otherwise.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    backend = "nccl" if on_cuda else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
    clock = PhaseClock(device)
    sequence = _join_sequence_group(sequence_parallel_size, timeout, clock)
    return Ranks(dist.get_rank(), dist.get_world_size(), device, sequence, clock)


def _join_sequence_group(size: int, timeout: timedelta, clock: PhaseClock) -> SequenceGroup:
    rank, own = dist.get_rank(), None
    for first in range(0, dist.get_world_size(), size):  # every rank takes part in the making of every group
        group = dist.new_group(list(range(first, first + size)), timeout=timeout) if size > 1 else None
        own = group if first <= rank < first + size else own
    return SequenceGroup(rank % size, size, own, clock)


def leave_distributed() -> None:
    """Leaves the process group together: a rank that just exits can make the others abort in gloo's threads."""
    dist.barrier()
    dist.destroy_process_group()
    note_left_distributed()


def skip_shm_op() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives on CPU.

    The compilation takes minutes, and a process killed meanwhile leaves a lock that hangs every later run. gloo
    does the same work. The attribute is private to DeepSpeed, hence the pinned version and a test.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def gather_rows(values: Sequence[float], ranks: Ranks) -> np.ndarray:
    """Every rank's `values` as float64 [world_size, len(values)], the same on all ranks. Collective."""
    mine = torch.tensor(values, dtype=torch.float64, device=ranks.device)
    rows = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    with ranks.clock.phase("comm"):
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
