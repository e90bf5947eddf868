"""Runs as one rank of a sequence-parallel group: exchanges with uneven tokens and heads, for test_ulysses.py.

RANK=.. WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. python ulysses_cases.py OUTPUT
"""

import sys
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from pipeline.distributed.groups import init_distributed, leave_distributed
from pipeline.distributed.head_shares import share_heads
from pipeline.distributed.ulysses import SequenceGroup, add_heads, even_counts, redistribute, to_heads, to_tokens

WIDTH = 3
HEADS = {2: [(4, 2), (6, 2), (7, 1)], 4: [(4, 1), (4, 2), (14, 2), (8, 8)]}  # query, key-value
LENGTHS = (1, 3, 17, 64)


def draw(name: str, *shape: int) -> Tensor:
    """The same on every rank."""
    generator = torch.Generator().manual_seed(sum(name.encode()) + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def exchange_case(length: int, heads: tuple[int, int], group: SequenceGroup) -> dict[str, Tensor]:
    """What this rank sees of queries and keys of a row, and the gradients to its own tokens.

    Attention's place is taken by products of all tokens' queries and keys, head by head.
    """
    shares, counts = share_heads(*heads, group.size), even_counts(length, group.size)
    start = (0, *accumulate(counts))[group.rank]
    own = slice(start, start + counts[group.rank])
    query, key = (draw(n, length, h, WIDTH)[own].requires_grad_() for n, h in zip("qk", heads, strict=True))
    q, k = (to_heads(x, counts, s, group) for x, s in ((query, shares.query), (key, shares.key_value)))
    mixed = attend(q, k)
    out = to_tokens(mixed, counts, shares.query, group)
    (out * draw("o", length, heads[0], WIDTH)[own]).sum().backward()
    rows = redistribute(draw("r", length, WIDTH)[own], counts, tuple(reversed(counts)), group)
    received = draw("m", length, heads[1])[:, slice(*shares.key_value[group.rank])] * (group.rank + 1)
    decided = add_heads(received, shares.key_value, shares.deciding, group)
    added = add_heads(decided, shares.deciding, shares.key_value, group)
    return {"added": added, "q": q, "k": k, "out": out, "query_grad": query.grad, "key_grad": key.grad, "rows": rows}


def attend(q: Tensor, k: Tensor) -> Tensor:
    """Every output depends on every token of its head, [N, h, F]."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return torch.einsum("nhf,mhf,mhg->nhg", q, k, k.sin())


def main() -> None:
    ranks = init_distributed()
    group, results = SequenceGroup(ranks.rank, ranks.world_size, None), {}
    for length in LENGTHS:
        for heads in HEADS[group.size]:
            results[f"{length}-{heads}"] = exchange_case(length, heads, group)
    x = draw("sum", 5)[group.rank :].sum().requires_grad_()
    (group.sum(x.square()) * (1 + group.rank)).backward()
    results["sum"] = {"grad": x.grad}
    half = torch.randn(group.size * 2, 4, 8, dtype=torch.bfloat16)
    before = group.bytes_sent
    shares = share_heads(4, 4 if group.size == 4 else 2, group.size).query
    to_heads(half, [len(half)] * group.size, shares, group)
    results["sent"] = {"bytes": torch.tensor(group.bytes_sent - before)}
    torch.save(results, Path(sys.argv[1]) / f"rank{group.rank}.pt")
    leave_distributed()


if __name__ == "__main__":
    main()
