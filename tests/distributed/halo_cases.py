"""Runs as one rank of a sequence-parallel group, for test_halo.py: rows fetched from other ranks, bytes of a step.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python halo_cases.py OUTPUT
"""

import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.attention.window import WindowSpec
from pipeline.data.collate import DrawnSample, collate
from pipeline.data.shard_format import PackedSample
from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.distributed.halo import Run, fetch_runs
from pipeline.distributed.ulysses import SequenceGroup
from pipeline.training.distillation import Distillation
from tests.distributed.sequence_cases import VOCABULARY, build_model, make_layout

NUM_DRAWS, WIDTH = 20, 3
CELLS, HEADS, WINDOW, LENGTHS = ("gated_delta_net", "delta_net", "mamba2"), (4, 2), WindowSpec(5, 40), (1024, 4096)
LONG = 16384


def draw(number: int, size: int) -> tuple[list[int], list[list[Run]], Tensor, Tensor]:
    """Rows of each rank, runs that each needs, the row and what each rank's rows weigh: the same on every rank."""
    generator = np.random.default_rng(number)
    counts = generator.integers(0, 9, size).tolist()
    counts[number % size] += 1
    cuts = [sorted(generator.integers(0, sum(counts) + 1, 2 * generator.integers(0, 4)).tolist()) for _ in range(size)]
    needed = [list(zip(own[::2], own[1::2], strict=True)) for own in cuts]
    row = torch.from_numpy(generator.standard_normal((sum(counts), WIDTH)))
    return counts, needed, row, torch.from_numpy(generator.standard_normal((size, sum(counts), WIDTH)))


def taken(x: Tensor, runs: list[Run]) -> Tensor:
    return torch.cat([x[:0], *(x[start:end] for start, end in runs)])


def fetch_case(number: int, group: SequenceGroup) -> dict[str, Tensor]:
    counts, needed, row, weights = draw(number, group.size)
    start = (0, *accumulate(counts))[group.rank]
    x = row[start : start + counts[group.rank]].clone().requires_grad_()
    before = group.bytes_sent
    rows = fetch_runs(x, counts, needed, group)
    sent = group.bytes_sent - before
    (rows * taken(weights[group.rank], needed[group.rank])).sum().backward()
    return {"rows": rows.detach(), "grad": x.grad, "sent": torch.tensor([sent, group.bytes_sent - before])}


def bytes_of_step(mode: str, cell: str, length: int, group: SequenceGroup, checkpointing: bool = False) -> int:
    """Sent by this rank, forward and backward, for one document of `length` tokens."""
    model = build_model(cell, HEADS)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, length, dtype=np.uint32)
    sample = PackedSample("s", tokens, np.array([0, length], np.int32), None, {})
    batch, before = collate([DrawnSample(0, sample, WINDOW)]), group.bytes_sent
    loss = Distillation(model, "ce", 512, layout=make_layout(mode, HEADS, group))(
        batch, torch.ones(len(batch.positions))
    )
    loss.backward()
    return group.bytes_sent - before


def main() -> None:
    ranks = init_distributed()
    group = SequenceGroup(ranks.rank, ranks.world_size, None)
    results = {f"fetch {number}": fetch_case(number, group) for number in range(NUM_DRAWS)}
    volume = {f"{c} {n}": bytes_of_step("halo", c, n, group) for c in CELLS for n in LENGTHS}
    volume |= {"long": bytes_of_step("halo", "gated_delta_net", LONG, group)}
    volume |= {"recomputed": bytes_of_step("halo", "gated_delta_net", LENGTHS[0], group, checkpointing=True)}
    volume |= {f"ulysses {n}": bytes_of_step("ulysses", "gated_delta_net", n, group) for n in LENGTHS}
    results["volume"] = {name: torch.tensor(value) for name, value in volume.items()}
    torch.save(results, Path(sys.argv[1]) / f"rank{group.rank}.pt")
    leave_distributed()


if __name__ == "__main__":
    main()
