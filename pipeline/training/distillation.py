"""Teacher pass, student pass and loss as one module's forward.

One forward, so that the engine's hooks see the same sequence of modules on every rank at every ZeRO stage. Where the
teacher's signals come from a cache, the pass over the prefixes stands in its place: the same modules in the same
order, so ranks whose samples have signals and ranks whose samples do not work together. Where ranks keep their tokens
inside attention (halo), there is no pass but the student's, over the whole documents.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.collate import Batch
from pipeline.distributed.clock import PhaseClock
from pipeline.distributed.ulysses import redistribute
from pipeline.losses.chunked_ce import chunked_cross_entropy
from pipeline.losses.chunked_kl import chunked_forward_kl
from pipeline.losses.signal_kl import chunked_signal_kl
from pipeline.losses.sparse_kl import Tail
from pipeline.model.output_head import find_output_head, whole
from pipeline.model.sequence_shard import SequenceLayout, SequenceShard
from pipeline.teacher.online import compute_prefixes, compute_teacher_hidden, record_full_attention
from pipeline.training.scorer_features import FeatureStore
from pipeline.training.student_row import StudentRow, row_behind, row_of_whole


class Distillation(nn.Module):
    """The loss of one micro-batch as a function of the AHN parameters.

    Args:
        model: an AHN model with a frozen base.
        loss: `kl` against the full-attention teacher, or `ce` against the next token; `retention` has none.
        loss_chunk_size: positions whose logits exist at one time.
        topk_tail: what becomes of the mass outside the K tokens of a cached topk signal.
        layout: the ranks that hold a micro-batch together, if they are several. Without heads (halo), the loss needs
            the batch's signal, or is `ce`.
        clock: times what comes before the student's own pass, as its phase `teacher`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        loss: Literal["kl", "ce", "retention"],
        loss_chunk_size: int,
        topk_tail: Tail = "bucket",
        layout: SequenceLayout | None = None,
        clock: PhaseClock | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.loss_chunk_size = loss_chunk_size
        self.topk_tail: Tail = topk_tail
        self.layout = layout
        self.clock = clock or PhaseClock()
        # Its weight is no attribute of this module: looked up through one during a forward, ZeRO-3 would take it for
        # a parameter of the module from then on, and keep it gathered through the whole forward.
        self._head = find_output_head(model)

    def forward(self, batch: Batch, position_weights: Tensor, record: FeatureStore | None = None) -> Tensor:
        """Weighted sum of the loss over the batch's positions, in nats.

        Args:
            batch: one micro-batch, with the teacher's signal or without; without positions the loss is zero, still
                tied to every AHN parameter.
            position_weights: float32 [M].
            record: takes what a forward of the batch with full attention gives it, and that is all: the loss is 0.

        Returns:
            Scalar, float32; of a micro-batch that several ranks hold, the sum over this rank's positions.
        """
        decoder = self.model.get_decoder()
        if record is not None:
            record_full_attention(decoder, batch, record)
            return position_weights.new_zeros(())
        with self.clock.phase("teacher"):
            row, teacher_hidden = self._student_row(decoder, batch)
        places, shard, own = torch.searchsorted(row.indices, batch.positions), None, slice(None)
        if self.layout is not None:
            shard = self.layout.shard(len(row.indices))
            own = shard.own_of(places)
            if teacher_hidden is not None:
                before = self.layout.shard(batch.input_ids.shape[1]).count(batch.positions)
                teacher_hidden = redistribute(teacher_hidden, before, shard.count(places), self.layout.group)
        hidden = self._student_hidden(decoder, batch, row, places, shard)
        with whole(self._head) as head:
            common = head, position_weights[own], self.loss_chunk_size
            if self.loss == "ce" or len(batch.positions) == 0:
                return chunked_cross_entropy(hidden, batch.targets[own], *common)
            if teacher_hidden is not None:
                return chunked_forward_kl(hidden, teacher_hidden, *common)
            signal = batch.signal if shard is None else batch.signal.select(np.arange(own.start, own.stop))
            return chunked_signal_kl(hidden, signal, *common, self.topk_tail)

    def _student_row(self, decoder: nn.Module, batch: Batch) -> tuple[StudentRow, Tensor | None]:
        """What the student computes, and the teacher's hidden states at the supervised positions if it has to run."""
        teacher_hidden = None
        if self.layout is not None and self.layout.heads is None:
            row = row_of_whole(batch.student_documents)
        elif self.loss == "kl" and batch.signal is None:
            teacher_hidden, prefixes = compute_teacher_hidden(decoder, batch, self.layout)
            row = row_behind(prefixes)
        else:
            row = row_behind(compute_prefixes(decoder, batch, self.layout))
        return replace(row, indices=row.indices.to(batch.input_ids.device)), teacher_hidden

    @staticmethod
    def _student_hidden(
        decoder: nn.Module, batch: Batch, row: StudentRow, places: Tensor, shard: SequenceShard | None
    ) -> Tensor:
        """Final hidden states at the supervised positions [M, D].

        Args:
            row: the tokens that are computed.
            places: where the supervised ones lie among them, int64 [M].
            shard: of the row; the result is then of this rank's positions [m, D].
        """
        tokens = batch.input_ids[:, row.indices], batch.position_ids[:, row.indices]
        input_ids, position_ids = tokens if shard is None else map(shard.take, tokens)
        output = decoder(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            documents=row.documents,
            prefixes=row.prefixes,
            shard=shard,
        )
        return output.last_hidden_state[0, places if shard is None else shard.localise(places)]
