"""The teacher on the fly: the student's own frozen weights with full attention and without the memory."""

import torch
from torch import Tensor, nn

from pipeline.data.collate import Batch


@torch.no_grad()
def compute_teacher_hidden(decoder: nn.Module, batch: Batch) -> Tensor:
    """The teacher's final normed hidden states at the supervised positions, [M, D] in the base's dtype."""
    output = decoder(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        documents=batch.teacher_documents,
        use_memory=False,
    )
    return output.last_hidden_state[0, batch.positions]
