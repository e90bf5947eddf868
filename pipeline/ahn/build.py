"""Cells by name."""

from torch import nn

from pipeline.ahn.base import MemoryCell
from pipeline.ahn.delta_net import DeltaNet
from pipeline.ahn.gated_delta_net import GatedDeltaNet
from pipeline.ahn.mamba2 import Mamba2
from pipeline.ahn.retention_scorer import RetentionScorer

CELLS: dict[str, type[MemoryCell]] = {
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "mamba2": Mamba2,
}


class Memory(nn.Module):
    """A layer's memory: its cell, under the published parameter names (`ahn.fn.*`), and where tokens are retained
    what chooses them (`ahn.retention.*`)."""

    def __init__(self, cell: str, hidden_size: int, num_heads: int, head_dim: int, num_scored_heads: int = 0) -> None:
        """
        Args:
            cell: by name.
            hidden_size, num_heads, head_dim: the layer's.
            num_scored_heads: key-value heads that retain tokens; 0: none.
        """
        super().__init__()
        self.fn = CELLS[cell](hidden_size, num_heads, head_dim)
        self.retention = RetentionScorer(hidden_size, num_scored_heads) if num_scored_heads else None
