"""Teacher pass, student pass and loss as one module's forward.

One forward, so that the engine's hooks see the same sequence of modules on every rank at every ZeRO stage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import deepspeed
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.collate import Batch
from pipeline.losses.chunked_ce import chunked_cross_entropy
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.model.prefix import PrefixStore
from pipeline.teacher.online import compute_prefixes, compute_teacher_hidden


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
        if self.loss == "kl":
            teacher_hidden, prefixes = compute_teacher_hidden(decoder, batch)
        else:
            prefixes = compute_prefixes(decoder, batch)
        student_hidden = self._student_hidden(decoder, batch, prefixes)
        with whole(self._head[0]) as head:
            if self.loss == "kl":
                return chunked_forward_kl(student_hidden, teacher_hidden, head, position_weights, self.loss_chunk_size)
            return chunked_cross_entropy(student_hidden, batch.targets, head, position_weights, self.loss_chunk_size)

    @staticmethod
    def _student_hidden(decoder: nn.Module, batch: Batch, prefixes: PrefixStore) -> Tensor:
        """Final hidden states at the supervised positions [M, D]; only tokens past the prefixes are computed."""
        indices = prefixes.suffix_indices().to(batch.input_ids.device)
        output = decoder(
            input_ids=batch.input_ids[:, indices],
            position_ids=batch.position_ids[:, indices],
            use_cache=False,
            documents=prefixes.suffix_documents(),
            prefixes=prefixes,
        )
        return output.last_hidden_state[0, torch.searchsorted(indices, batch.positions)]


@contextmanager
def whole(weight: nn.Parameter) -> Iterator[nn.Parameter]:
    """`weight` with all its rows: gathered over the ranks where ZeRO-3 partitions it, and released after."""
    if not hasattr(weight, "ds_id"):
        yield weight
        return
    with deepspeed.zero.GatheredParameters([weight]):
        yield weight
