"""Which of a micro-batch's tokens the student computes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.attention.window import Document
from pipeline.model.prefix import PrefixStore


@dataclass(frozen=True)
class StudentRow:
    """`indices`: int64 [N], where its tokens lie in the batch's row. `documents`: what they make up. `prefixes`: what
    comes before them, if that is computed apart."""

    indices: Tensor
    documents: tuple[Document, ...]
    prefixes: PrefixStore | None = None


def row_behind(prefixes: PrefixStore) -> StudentRow:
    """The documents without the tokens that the lossless budget holds."""
    return StudentRow(prefixes.suffix_indices(), prefixes.suffix_documents(), prefixes)


def row_of_whole(documents: Sequence[Document]) -> StudentRow:
    """The documents, end to end."""
    indices, moved, start = [], [], 0
    for d in documents:
        indices.append(torch.arange(d.start, d.end))
        moved.append(replace(d, start=start, end=start + d.length))
        start += d.length
    return StudentRow(torch.cat(indices), tuple(moved))
