"""How a row is spread over the ranks of a sequence-parallel group.

Outside attention each rank has a run of its tokens. Inside it either all tokens and a share of the heads (Ulysses), or
the same tokens and all heads, with what it needs of the ranks before (halo).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.distributed.head_shares import HeadShares, Share
from pipeline.distributed.ulysses import SequenceGroup, even_counts, to_heads, to_tokens


@dataclass(frozen=True)
class SequenceShard:
    """One row of `sum(counts)` tokens, of which rank r of the group holds the next counts[r].

    `heads`: of each rank inside attention; None where ranks keep their tokens there. Tokens at the row's end that
    belong to no document are padding: no rank is without a token, which transformers' models do not take.
    """

    group: SequenceGroup
    heads: HeadShares | None
    counts: tuple[int, ...]

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """This rank's tokens [first, end) of the row."""
        starts = (0, *accumulate(self.counts))
        return starts[self.group.rank], starts[self.group.rank + 1]

    @property
    def keeps_tokens(self) -> bool:
        """Whether this rank's tokens inside attention are those outside it."""
        return self.heads is None

    @property
    def own(self) -> slice:
        return slice(*self.bounds)

    @property
    def own_count(self) -> int:
        return self.counts[self.group.rank]

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[1, H, n, D] of this rank's tokens and all heads -> [1, h, N, D] of all tokens and its heads."""
        shares = (self.heads.query, self.heads.key_value, self.heads.key_value)
        return tuple(self._to_heads(x[0].transpose(0, 1), s).transpose(0, 1)[None]
                     for x, s in zip((query, key, value), shares, strict=True))  # fmt: skip

    def numbers_to_heads(self, x: Tensor, shares: Sequence[Share]) -> Tensor:
        """[1, n, H] of this rank's tokens and all heads, a number each -> [1, N, h] of all tokens and its share."""
        return self._to_heads(x[0, :, :, None], shares)[None, :, :, 0]

    def to_tokens(self, output: Tensor) -> Tensor:
        """[1, N, h, D] of all tokens and this rank's query heads -> [1, n, Hq, D] of its tokens and all heads."""
        return to_tokens(output[0], self.counts, self.heads.query, self.group)[None]

    def _to_heads(self, x: Tensor, shares: Sequence[Share]) -> Tensor:
        return to_heads(x, self.counts, shares, self.group)

    def part(self, start: int, end: int) -> slice:
        """Which of this rank's own tokens lie in [start, end) of the row."""
        first, last = self.bounds
        return slice(min(max(start, first), last) - first, max(min(end, last), first) - first)

    def take(self, row: Tensor) -> Tensor:
        """This rank's part [1, n] of a row without its padding."""
        return F.pad(row, (0, self.num_tokens - row.shape[1]))[:, self.own]

    def localise(self, places: Tensor) -> Tensor:
        """Those of the rising `places` in the row that this rank has, counted from its first token."""
        first, end = self.bounds
        return places[(places >= first) & (places < end)] - first

    def own_of(self, places: Tensor) -> slice:
        """Which of the rising `places` in the row this rank has."""
        counts, rank = self.count(places), self.group.rank
        return slice(sum(counts[:rank]), sum(counts[: rank + 1]))

    def count(self, places: Tensor) -> tuple[int, ...]:
        """How many of the rising `places` in the row each rank has."""
        ends = torch.tensor(list(accumulate(self.counts)), device=places.device)
        reached = torch.searchsorted(places, ends).tolist()
        return tuple(after - before for before, after in pairwise((0, *reached)))

    def regrouped(self, runs: Sequence[tuple[int, int]]) -> "SequenceShard":
        """The shard of a row that holds these runs [start, end) of this one, in order, each token where it is."""
        starts = (0, *accumulate(self.counts))
        counts = (
            sum(max(0, min(end, last) - max(start, first)) for start, end in runs) for first, last in pairwise(starts)
        )
        return SequenceShard(self.group, self.heads, tuple(counts))


@dataclass(frozen=True)
class SequenceLayout:
    """A sequence-parallel group and the heads of its ranks inside attention (None: all): makes shards of rows."""

    group: SequenceGroup
    heads: HeadShares | None

    def shard(self, num_tokens: int) -> SequenceShard:
        """A row of `num_tokens`, spread evenly; padded if there are fewer than ranks."""
        return SequenceShard(self.group, self.heads, even_counts(max(num_tokens, self.group.size), self.group.size))
