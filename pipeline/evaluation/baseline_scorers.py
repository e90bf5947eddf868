"""What chooses retained tokens where the model's own scorer does not: chance, what was received, what is to come."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ahn.retention_scorer import GRID, MIN_MASS

_MASK = 2**32 - 1


@dataclass(frozen=True)
class RandomScorer:
    """A number in [0, 1) for each position and key-value head, the same however a text is cut into parts."""

    seed: int
    layer: int

    def score_positions(self, positions: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        """As TokenScorer's."""
        mixed = _mix(_mix(torch.tensor(self.seed & _MASK, device=positions.device)) ^ self.layer)
        mixed = _mix(mixed ^ torch.arange(num_heads, device=positions.device))
        return (_mix(mixed ^ positions[..., None] & _MASK) >> 8).to(dtype) / 2**24

    def finish(self, partial: Tensor, received: Tensor, positions: Tensor) -> Tensor:
        """As TokenScorer's."""
        return partial


@dataclass(frozen=True)
class ReceivedScorer:
    """The attention mass that a token received while it was in the window, alone (H2O, arXiv 2306.14048): what a
    RetentionScorer does whose weights are 0 and whose mass's is 1."""

    def score_positions(self, positions: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        """As TokenScorer's."""
        return torch.zeros(*positions.shape, num_heads, dtype=dtype, device=positions.device)

    def finish(self, partial: Tensor, received: Tensor, positions: Tensor) -> Tensor:
        """As TokenScorer's."""
        return ((received + MIN_MASS).log() * GRID).round() / GRID


@dataclass(frozen=True)
class KnownScorer:
    """Scores of the tokens of one text, [Hkv, N]."""

    scores: Tensor

    def score_positions(self, positions: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        """As TokenScorer's."""
        return self.scores.T[positions].to(dtype)

    def finish(self, partial: Tensor, received: Tensor, positions: Tensor) -> Tensor:
        """As TokenScorer's."""
        return partial


def _mix(x: Tensor) -> Tensor:
    """A permutation of 32-bit numbers, in int64, in which each bit depends on each: `lowbias32` of Wellons' hash
    prospector (2018, public domain)."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & _MASK
    x = ((x ^ x >> 15) * 0x846CA68B) & _MASK
    return x ^ x >> 16
