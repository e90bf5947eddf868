"""A base's frozen output head: final hidden states to logits as the base computes them, and gradients back.

logits = cap(scale * (hidden W^T + bias)),    cap(x) = softcap * tanh(x / softcap), or x where there is no softcap
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OutputHead:
    """`weight` [V, D] and `bias` [V] in the head's own dtype; pipeline/model/output_head.py finds a model's."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits [C, V] of hidden states [C, D], in at least float32; the product is in the head's dtype, as the
        base's is, and what follows it is not."""
        hidden = hidden.to(self.weight.dtype)
        product = hidden @ self.weight.T if self.bias is None else torch.addmm(self.bias, hidden, self.weight.T)
        logits = product.to(torch.promote_types(product.dtype, torch.float32))
        if self.scale != 1:
            logits *= self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def slopes(self, logits: Tensor) -> Tensor | None:
        """Derivative of each of `logits` [C, V] to its product, a new tensor that broadcasts to it; None: 1."""
        if self.softcap is not None:
            return (logits / self.softcap).square_().neg_().add_(1).mul_(self.scale)
        return None if self.scale == 1 else logits.new_full((), self.scale)

    def pull_back(self, grad_logits: Tensor, slopes: Tensor | None) -> Tensor:
        """Gradient to the hidden states [C, D] in the head's dtype; the memory of `grad_logits` [C, V] is reused."""
        if slopes is not None:
            grad_logits *= slopes
        return grad_logits.to(self.weight.dtype) @ self.weight

    def copy_to(self, to: torch.device | torch.dtype) -> "OutputHead":
        """A copy on another device or in another dtype, without a gradient."""
        copies = [None if x is None else x.detach().to(to, copy=True) for x in (self.weight, self.bias)]
        return OutputHead(*copies, self.scale, self.softcap)
