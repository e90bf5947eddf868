"""The scores that decide what a row's documents retain, where each rank of a group has some of the row's heads."""

from dataclasses import dataclass

from torch import Tensor

from pipeline.distributed.ulysses import add_heads
from pipeline.model.gate_exchange import candidates_to_heads
from pipeline.model.plan import DocumentPlan


@dataclass(frozen=True)
class HeadScores:
    """pipeline/ahn/retention_scorer.py's ScoreExchange for one forward of a sharded row.

    Of the ranks that have a key-value head the first one computes its scores. A rank's tokens are its part of the
    prefixes, where the plan has any, then its part of the row.
    """

    plan: DocumentPlan

    @property
    def heads(self) -> slice:
        shard = self.plan.shard
        return slice(*shard.heads.deciding[shard.group.rank])

    @property
    def _are_shared(self) -> bool:
        heads = self.plan.shard.heads
        return heads.deciding != heads.key_value

    def to_candidates(self, partial: Tensor) -> Tensor:
        return candidates_to_heads(partial, self.plan.shard.heads.deciding, self.plan)

    def to_deciders(self, received: Tensor) -> Tensor:
        if not self._are_shared:
            return received
        heads, group = self.plan.shard.heads, self.plan.shard.group
        (first, end), num_key_value = heads.query[group.rank], received.shape[2]
        of_one = heads.query[-1][1] / heads.key_value[-1][1]  # query heads of a key-value head, over all ranks
        weighted = received[0] * ((end - first) / num_key_value / of_one)
        return add_heads(weighted, heads.key_value, heads.deciding, group)[None]

    def from_deciders(self, scores: Tensor) -> Tensor:
        if not self._are_shared:
            return scores
        heads = self.plan.shard.heads
        return add_heads(scores[0], heads.deciding, heads.key_value, self.plan.shard.group)[None]
