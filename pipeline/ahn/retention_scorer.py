"""What decides which evicted tokens a layer retains: a linear score a key-value head, fitted to what the base's later
queries read."""

from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.ahn.base import ALL_HEADS

GRID = 1024
MIN_MASS = 1e-6


class ScoreExchange(Protocol):
    """For a row that several ranks of a group hold: outside attention each has some of its tokens, inside it all
    tokens and some key-value heads, and some query heads of each.

    `heads`: the key-value heads of which this rank alone computes the scores.
    """

    heads: slice

    def to_candidates(self, partial: Tensor) -> Tensor:
        """[1, n, Hkv] of the rank's tokens -> [1, N, h] of all candidates and `heads`."""

    def to_deciders(self, received: Tensor) -> Tensor:
        """Masses [1, N, k] from this rank's query heads of its key-value heads -> [1, N, h], from all query heads of
        `heads`."""

    def from_deciders(self, scores: Tensor) -> Tensor:
        """[1, N, h] -> [1, N, k] of this rank's key-value heads, the same bits on all ranks that have one."""


class RetentionScorer(nn.Module):
    """score = w h + u log(r + 1e-6) + c p + b a key-value head, rounded to multiples of 1 / 1024.

    h is the token's pre-normed hidden state, r the attention mass that sampled queries gave it while it was in the
    window (pipeline/attention/received.py), p its position. What is read of a token falls with its age as exp(-c age):
    compared at the same time, e^(s - c (t - p)) of two tokens are in the same order at every t, that of s + c p. So a
    head that reads what is near keeps what is near, and still no score changes while a token waits. Rounded, because in
    the first layer equal tokens have equal scores up to the rounding of the products, which differs between one forward
    and another. At first all scores are 0, so that the older tokens leave first: a window that is wider by as many.

    Buffers, not parameters: no gradient reaches them (they are fitted apart, pipeline/training/scorer_fit.py), and what
    is no parameter ZeRO stage 3 leaves whole. And methods, not a forward: its hooks want the same calls of modules on
    all ranks, some of whose documents may retain nothing.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_heads, hidden_size))
        self.register_buffer("mass_weight", torch.zeros(num_heads))
        self.register_buffer("position_weight", torch.zeros(num_heads))
        self.register_buffer("bias", torch.zeros(num_heads))

    @torch.no_grad()
    def score(
        self, hidden_states: Tensor, received: Tensor, positions: Tensor, exchange: ScoreExchange | None = None
    ) -> Tensor:
        """Scores [B, N, Hkv] in the buffers' dtype from hidden states [B, N, hidden], masses [B, N, Hkv] and positions
        in the document, int64 [N].

        With an `exchange`, `hidden_states` are of this rank's tokens [1, n, hidden], masses and scores of all
        candidates and this rank's key-value heads [1, N, k].
        """
        partial = self.score_hidden(hidden_states)
        positions = positions[:, None]
        if exchange is None:
            return self.finish(partial, received, positions)
        # One rank alone: of two that compute a score anew each may round it to its own side.
        masses = exchange.to_deciders(received)
        return exchange.from_deciders(self.finish(exchange.to_candidates(partial), masses, positions, exchange.heads))

    @torch.no_grad()
    def score_hidden(self, hidden_states: Tensor) -> Tensor:
        """The part of the scores [B, N, Hkv] that is known when a token comes: a cache keeps it until it leaves."""
        return hidden_states.to(self.weight.dtype) @ self.weight.T + self.bias

    @torch.no_grad()
    def finish(self, partial: Tensor, received: Tensor, positions: Tensor, heads: slice = ALL_HEADS) -> Tensor:
        """Scores [.., h] of these heads from `score_hidden`'s, the masses, and the positions, which broadcast."""
        score = partial + self.mass_weight[heads] * (received.to(partial.dtype) + MIN_MASS).log()
        score = score + self.position_weight[heads] * positions
        return (score * GRID).round() / GRID
