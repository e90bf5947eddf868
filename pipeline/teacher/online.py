"""The teacher on the fly: the student's own frozen weights with full attention and without the memory."""

import itertools

import torch
from torch import Tensor, nn

from pipeline.attention.window import Document
from pipeline.data.collate import Batch
from pipeline.model.prefix import PrefixStore


@torch.no_grad()
def compute_teacher_hidden(decoder: nn.Module, batch: Batch) -> tuple[Tensor, PrefixStore]:
    """The teacher's final normed hidden states at the supervised positions, [M, D] in the base's dtype.

    With them comes what the student need not compute again.
    """
    prefixes = PrefixStore(batch.student_documents)
    output = decoder(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        documents=batch.teacher_documents,
        use_memory=False,
        record=prefixes,
    )
    return output.last_hidden_state[0, batch.positions], prefixes


@torch.no_grad()
def compute_prefixes(decoder: nn.Module, batch: Batch) -> PrefixStore:
    """What the student need not compute again, by a pass over these tokens alone: for a loss without a teacher."""
    documents = batch.student_documents
    ends = list(itertools.accumulate(d.window.lossless_budget for d in documents))
    starts = [0, *ends[:-1]]
    tokens = torch.cat([torch.arange(d.start, d.start + d.window.lossless_budget) for d in documents])
    tokens = tokens.to(batch.input_ids.device)
    prefixes = PrefixStore(documents, starts)
    decoder(
        input_ids=batch.input_ids[:, tokens],
        position_ids=batch.position_ids[:, tokens],
        use_cache=False,
        documents=[Document(0, start, end, None) for start, end in zip(starts, ends, strict=True)],
        use_memory=False,
        record=prefixes,
    )
    return prefixes
