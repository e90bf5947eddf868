"""The teacher on the fly: the student's own frozen weights with full attention and without the memory."""

import itertools

import torch
from torch import Tensor, nn

from pipeline.attention.window import Document
from pipeline.data.collate import Batch
from pipeline.model.prefix import PrefixStore, Recorder
from pipeline.model.sequence_shard import SequenceLayout


@torch.no_grad()
def compute_teacher_hidden(
    decoder: nn.Module, batch: Batch, layout: SequenceLayout | None = None
) -> tuple[Tensor, PrefixStore]:
    """The teacher's final normed hidden states at the supervised positions, [M, D] in the base's dtype.

    With them comes what the student need not compute again. With a `layout` the group's ranks share the work, and
    the hidden states are of this rank's tokens, as the batch's row is spread evenly: [m, D].
    """
    shard = None if layout is None else layout.shard(batch.input_ids.shape[1])
    row = batch.input_ids, batch.position_ids
    input_ids, position_ids = row if shard is None else map(shard.take, row)
    prefixes = PrefixStore(batch.student_documents, shard=shard)
    output = decoder(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        documents=batch.teacher_documents,
        use_memory=False,
        record=prefixes,
        shard=shard,
    )
    positions = batch.positions if shard is None else shard.localise(batch.positions)
    return output.last_hidden_state[0, positions], prefixes


@torch.no_grad()
def record_full_attention(decoder: nn.Module, batch: Batch, record: Recorder) -> None:
    """Shows each layer's queries, keys, values and hidden states of the whole row under full attention to `record`."""
    decoder(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        documents=batch.teacher_documents,
        use_memory=False,
        record=record,
    )


@torch.no_grad()
def compute_prefixes(decoder: nn.Module, batch: Batch, layout: SequenceLayout | None = None) -> PrefixStore:
    """What the student need not compute again, by a pass over these tokens alone: for a loss without a teacher."""
    documents = batch.student_documents
    ends = list(itertools.accumulate(d.window.lossless_budget for d in documents))
    starts = [0, *ends[:-1]]
    tokens = torch.cat([torch.arange(d.start, d.start + d.window.lossless_budget) for d in documents])
    tokens = tokens.to(batch.input_ids.device)
    shard = None if layout is None else layout.shard(len(tokens))
    row = batch.input_ids[:, tokens], batch.position_ids[:, tokens]
    input_ids, position_ids = row if shard is None else map(shard.take, row)
    prefixes = PrefixStore(documents, starts, shard)
    decoder(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        documents=[Document(0, start, end, None) for start, end in zip(starts, ends, strict=True)],
        use_memory=False,
        record=prefixes,
        shard=shard,
    )
    return prefixes
