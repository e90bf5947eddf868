"""Teacher pass, student pass and loss as one module's forward.

One forward, so that the engine's hooks see the same sequence of modules on every rank at every ZeRO stage. Where the
teacher's signals come from a cache, the pass over the prefixes stands in its place: the same modules in the same
order, so ranks whose samples have signals and ranks whose samples do not work together.
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
from pipeline.losses.signal_kl import chunked_signal_kl
from pipeline.losses.sparse_kl import Tail
from pipeline.model.prefix import PrefixStore
from pipeline.teacher.online import compute_prefixes, compute_teacher_hidden


class Distillation(nn.Module):
    """The loss of one micro-batch as a function of the AHN parameters.

    Args:
        model: an AHN model with a frozen base.
        loss: `kl` against the full-attention teacher, or `ce` against the next token.
        loss_chunk_size: positions whose logits exist at one time.
        topk_tail: what becomes of the mass outside the K tokens of a cached topk signal.
    """

    def __init__(
        self, model: PreTrainedModel, loss: Literal["kl", "ce"], loss_chunk_size: int, topk_tail: Tail = "bucket"
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.loss_chunk_size = loss_chunk_size
        self.topk_tail: Tail = topk_tail
        # In a tuple, not as an attribute: looked up through its module during a forward, ZeRO-3 would take it for
        # a parameter of this module from then on, and keep it gathered through the whole forward.
        self._head = (model.get_output_embeddings().weight,)

    def forward(self, batch: Batch, position_weights: Tensor) -> Tensor:
        """Weighted sum of the loss over the batch's positions, in nats.

        Args:
            batch: one micro-batch, with the teacher's signal or without; without positions the loss is zero, still
                tied to every AHN parameter.
            position_weights: float32 [M].

        Returns:
            Scalar, float32.
        """
        decoder = self.model.get_decoder()
        teacher_hidden = None
        if self.loss == "kl" and batch.signal is None:
            teacher_hidden, prefixes = compute_teacher_hidden(decoder, batch)
        else:
            prefixes = compute_prefixes(decoder, batch)
        hidden = self._student_hidden(decoder, batch, prefixes)
        with whole(self._head[0]) as head:
            common = head, position_weights, self.loss_chunk_size
            if self.loss == "ce":
                return chunked_cross_entropy(hidden, batch.targets, *common)
            if teacher_hidden is not None:
                return chunked_forward_kl(hidden, teacher_hidden, *common)
            return chunked_signal_kl(hidden, batch.signal, *common, self.topk_tail)

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
