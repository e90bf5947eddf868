"""The frozen head as the losses use it."""

import torch
from torch import Tensor


def compute_logits(hidden: Tensor, lm_head_weight: Tensor) -> Tensor:
    """Logits [C, V] in at least float32, from a product in the head's own dtype as the base computes them."""
    logits = hidden.to(lm_head_weight.dtype) @ lm_head_weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
