"""The control of suite `heldout`: a text read with the memory of another one.

A trained memory gains over the window in two ways: it remembers the text, and it adapts the model to a window, whatever
it holds. Another text's memory can do the second alone. So can another text's retained tokens, which tell besides how
much is gained by any keys and values at all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.evaluation.foreign_memory import new_pair, read_beside
from pipeline.evaluation.heldout.pieces import Piece
from pipeline.evaluation.reader import Reader


def choose_partner(piece: Piece, lenders: Sequence[Piece], window_size: int) -> Piece | None:
    """The next of `lenders`, in their order and from the first on again, that lasts as long as `piece` reads a memory.

    Args:
        piece: of a document among those of `lenders`.
        lenders: one piece of each document.
        window_size: R; of a text of N tokens, N - R are evicted while it is read.

    Returns:
        Where none lasts so long the longest, and None where there is no other document.
    """
    own = [lender.document for lender in lenders].index(piece.document)
    others = [*lenders[own + 1 :], *lenders[:own]]
    if not others:
        return None
    needed = piece.end - piece.start - window_size
    return next((other for other in others if other.end - other.start >= needed), max(others, key=_length))


def _length(piece: Piece) -> int:
    return piece.end - piece.start


def read_with_foreign_memory(reader: Reader, tokens: Tensor, other: Tensor, positions: Tensor) -> Tensor:
    """Final normed hidden states [M', hidden] of `tokens`, when each layer reads the memory of `other` instead, and
    sees the tokens that it retains of `other` instead of the own.

    After token t of either text its memory has had tokens S to t - R, so the control goes as far as t < len(other) + R;
    where tokens are retained as far as t < len(other), for queries of the text behind it would have a say in which.

    Args:
        reader: of variant `ahn`, `retained*` or `retained*_ahn`.
        tokens: int64 [N].
        other: int64 [N'].
        positions: int64 [M] in [0, N), rising; the first M' are within reach.
    """
    beyond = 0 if reader.kept.num_retained_tokens else reader.window.window_size
    reach = min(len(tokens), len(other) + beyond)
    beside = torch.cat([other, other.new_zeros(max(0, reach - len(other)))])  # what fills it up is never evicted
    found, start = [], 0
    for hidden in read_beside(reader, tokens[:reach], beside[:reach], new_pair(reader)):
        inside = positions[(positions >= start) & (positions < start + len(hidden))] - start
        found.append(hidden[inside.to(hidden.device)])
        start += len(hidden)
    return torch.cat(found)
