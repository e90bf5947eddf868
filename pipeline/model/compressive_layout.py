"""Who sees what with the cache of a Compressive Transformer (arXiv 1911.05507), and where it lies.

With S sinks, a window of R tokens and M slots, block b is the evicted tokens S + 4b .. S + 4b + 3, complete at t when
S + 4b + 3 <= t - R. A query at t attends, in one softmax, to

- key j <= t itself if j < S, or t - j < R, or the block of j is not complete at t: a token waits for its block;
- slot b iff block b is complete at t and among the newest M complete ones: the element-wise maximum or mean of the
  block's 4 keys, as they are cached (after RoPE), and of its 4 values.

One buffer a layer: S sinks, a ring of R + 3 tokens, M slots. A token at position p >= S lies in S + (p - S) mod (R + 3)
and block b in S + R + 3 + b mod M, so nothing is moved, and decoding attends to the buffer as it lies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.attention.window import WindowSpec

BLOCK_LENGTH = 4
MAX_WAITING = BLOCK_LENGTH - 1
NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class CompressiveLayout:
    """Who is seen when, and where it lies. What is `born` at b and `dies` at d is seen by the queries at b .. d - 1."""

    window: WindowSpec
    num_slots: int

    @property
    def num_raw(self) -> int:
        """Tokens that the buffer holds as they are."""
        return self.window.lossless_budget + MAX_WAITING

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that are complete when the last of `num_tokens` tokens reads."""
        return self.window.num_evicted(num_tokens) // BLOCK_LENGTH

    def first_token(self, block: int) -> int:
        return self.window.num_sink_tokens + block * BLOCK_LENGTH

    def slots(self, positions: Tensor) -> Tensor:
        """Where tokens lie in the buffer, int64 as `positions`."""
        num_sinks = self.window.num_sink_tokens
        in_ring = num_sinks + (positions - num_sinks).remainder(self.num_raw - num_sinks)
        return torch.where(positions < num_sinks, positions, in_ring)

    def lives_of_tokens(self, positions: Tensor) -> Tensor:
        """When tokens are born and die, int64 [2, n]."""
        num_sinks = self.window.num_sink_tokens
        dies = self._completed_at((positions - num_sinks).div(BLOCK_LENGTH, rounding_mode="floor"))
        return torch.stack([positions, dies.where(positions >= num_sinks, NEVER)])

    def lives_of_blocks(self, blocks: Tensor) -> Tensor:
        """When slots are born and die, int64 [2, n]."""
        return torch.stack([self._completed_at(blocks), self._completed_at(blocks + self.num_slots)])

    def lives_in_buffer(self, num_seen: int, size: int, device: torch.device) -> Tensor:
        """When what lies in a buffer of `size` after `num_seen` tokens is born and dies, int64 [2, size]."""
        index, num_sinks = torch.arange(size, device=device), self.window.num_sink_tokens
        raw, slots = index[: self.num_raw], index[self.num_raw :] - self.num_raw
        newest = num_seen - num_sinks - 1
        in_ring = newest - (newest - (raw - num_sinks)).remainder(self.num_raw - num_sinks)
        tokens = self.lives_of_tokens(raw.where(raw < num_sinks, num_sinks + in_ring))
        is_filled = (raw < num_seen).where(raw < num_sinks, in_ring >= 0)
        newest = self.num_blocks(num_seen) - 1
        blocks = newest - (newest - slots).remainder(self.num_slots)
        is_filled = torch.cat([is_filled, blocks >= 0])
        return torch.cat([tokens, self.lives_of_blocks(blocks)], 1).where(is_filled, NEVER)

    def _completed_at(self, blocks: Tensor) -> Tensor:
        """The first query that sees a block's slot."""
        return self.window.lossless_budget + MAX_WAITING + blocks * BLOCK_LENGTH
