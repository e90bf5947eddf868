"""Cells by name."""

from torch import nn

from pipeline.ahn.base import MemoryCell
from pipeline.ahn.delta_net import DeltaNet
from pipeline.ahn.gated_delta_net import GatedDeltaNet
from pipeline.ahn.mamba2 import Mamba2

CELLS: dict[str, type[MemoryCell]] = {
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "mamba2": Mamba2,
}


class Memory(nn.Module):
    """A layer's memory; the wrapper is there for the published parameter names (`ahn.fn.*`)."""

    def __init__(self, cell: str, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.fn = CELLS[cell](hidden_size, num_heads, head_dim)
