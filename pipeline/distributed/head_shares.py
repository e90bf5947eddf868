"""Which attention heads each rank of a sequence-parallel group has while attention runs. Arithmetic only, no torch.

A rank's query heads are consecutive and belong to whole groups of one key-value head, or to one group that several
ranks share; either way all query heads of a rank that use one key-value head are as many, so grouped attention runs on
them as it is. Where ranks outnumber key-value heads, the head is sent to each rank that uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipeline.errors import UserError

Share = tuple[int, int]
"""Heads [first, end)."""


@dataclass(frozen=True)
class HeadShares:
    """Heads [first, end) of each rank of the group, in rank order."""

    query: tuple[Share, ...]
    key_value: tuple[Share, ...]

    @property
    def deciding(self) -> tuple[Share, ...]:
        """Of each rank's key-value heads those that no rank before it has, so that each head is one rank's."""
        taken = (0, *accumulate((end for _, end in self.key_value), max))
        return tuple((max(first, t), max(end, t)) for (first, end), t in zip(self.key_value, taken, strict=False))


def share_heads(num_query_heads: int, num_key_value_heads: int, size: int) -> HeadShares:
    """The heads of every rank of a group of `size`.

    Raises:
        UserError: the heads do not allow that size; lists those that they do.
    """
    even, uneven = legal_sizes(num_query_heads, num_key_value_heads)
    if size not in (1, *even, *uneven):
        more = f", and with shares that differ by one head: {_listed(uneven)}" if uneven else ""
        raise UserError(
            f"--sequence_parallel_size {size}: the model's {num_query_heads} query and {num_key_value_heads} key-value "
            f"heads allow {_listed(even)}{more}"
        )
    group = num_query_heads // num_key_value_heads
    if size <= num_key_value_heads:
        each = num_key_value_heads // size
        key_value = tuple((rank * each, (rank + 1) * each) for rank in range(size))
        return HeadShares(tuple((a * group, b * group) for a, b in key_value), key_value)
    sharing = size // num_key_value_heads
    cuts = [number * group // sharing for number in range(sharing + 1)]
    return HeadShares(
        tuple((head * group + a, head * group + b) for head in range(num_key_value_heads)
              for a, b in pairwise(cuts)),
        tuple((head, head + 1) for head in range(num_key_value_heads) for _ in range(sharing)),
    )  # fmt: skip


def legal_sizes(num_query_heads: int, num_key_value_heads: int) -> tuple[list[int], list[int]]:
    """Group sizes above 1 that give all ranks as many query heads, and those whose shares differ by one."""
    group = num_query_heads // num_key_value_heads
    sizes = [p for p in range(2, num_key_value_heads + 1) if num_key_value_heads % p == 0]
    sizes += [p * num_key_value_heads for p in range(2, group + 1)]
    return [p for p in sizes if num_query_heads % p == 0], [p for p in sizes if num_query_heads % p]


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) or "none"
