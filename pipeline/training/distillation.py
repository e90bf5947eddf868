"""Teacher pass, student pass and loss as one module's forward.

One forward, so that the engine's hooks see the same sequence of modules on every rank at every ZeRO stage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import deepspeed
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.collate import Batch
from pipeline.losses.chunked_ce import chunked_cross_entropy
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.teacher.online import compute_teacher_hidden


class Distillation(nn.Module):
    """The loss of one micro-batch as a function of the AHN parameters.

    Args:
        model: an AHN model with a frozen base.
        loss: `kl` against the full-attention teacher, or `ce` against the next token.
        loss_chunk_size: positions whose logits exist at one time.
    """

    def __init__(self, model: PreTrainedModel, loss: Literal["kl", "ce"], loss_chunk_size: int) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.loss_chunk_size = loss_chunk_size
        # In a tuple, not as an attribute: looked up through its module during a forward, ZeRO-3 would take it for
        # a parameter of this module from then on, and keep it gathered through the whole forward.
        self._head = (model.get_output_embeddings().weight,)

    def forward(self, batch: Batch, position_weights: Tensor) -> Tensor:
        """Weighted sum of the loss over the batch's positions, in nats.

        Args:
            batch: one micro-batch; without positions the loss is zero, still tied to every AHN parameter.
            position_weights: float32 [M].

        Returns:
            Scalar, float32.
        """
        decoder = self.model.get_decoder()
        teacher_hidden = compute_teacher_hidden(decoder, batch) if self.loss == "kl" else None
        output = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            documents=batch.documents,
        )
        student_hidden = output.last_hidden_state[0, batch.positions]
        with whole(self._head[0]) as head:
            if teacher_hidden is None:
                return chunked_cross_entropy(
                    student_hidden, batch.targets, head, position_weights, self.loss_chunk_size
                )
            return chunked_forward_kl(student_hidden, teacher_hidden, head, position_weights, self.loss_chunk_size)


@contextmanager
def whole(weight: nn.Parameter) -> Iterator[nn.Parameter]:
    """`weight` with all its rows: gathered over the ranks where ZeRO-3 partitions it, and released after."""
    if not hasattr(weight, "ds_id"):
        yield weight
        return
    with deepspeed.zero.GatheredParameters([weight]):
        yield weight
