"""What a run of writes does to a memory's state, whatever that state is.

All cells are linear in the state they start from, so a run of E writes and reads, begun in the state h, gives

    outputs = output + reads h          state after it = transition h + increment

per query head, and none of the four depends on h. So the ranks of a group can work on their runs of one document at
the same time, before any knows the state that the ranks before it will hand on.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Passage(NamedTuple):
    """`output` and `reads` [1, E, Hq, D], `increment` [Hq, D, D]; `transition` [Hq, D, D], or [Hq, 1, 1] where all
    that a run does to an older state is to scale it."""

    output: Tensor
    reads: Tensor
    transition: Tensor
    increment: Tensor

    def read(self, state: Tensor) -> Tensor:
        """The outputs [1, E, Hq, D] of the run begun in `state` [Hq, D, D]."""
        return self.output + torch.einsum("bthi,hij->bthj", self.reads, state)


def pass_through(state: Tensor, transition: Tensor, increment: Tensor) -> Tensor:
    """The state [Hq, D, D] after a run that was begun in `state`."""
    carried = transition * state if transition.shape[-1] == 1 else transition @ state
    return carried + increment
