"""The control of suite `heldout`: a text read with the memory of another one.

A trained memory gains over the window in two ways: it remembers the text, and it adapts the model to a window, whatever
it holds. Another text's memory can do the second alone. Both texts are read side by side, so that at each position
both memories have had as many tokens; the other text is read with its own, as always.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.ahn.base import Gates, MemoryCell
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


@torch.no_grad()
def read_with_foreign_memory(reader: Reader, tokens: Tensor, other: Tensor, positions: Tensor) -> Tensor:
    """Final normed hidden states [M', hidden] of `tokens`, when each layer reads the memory of `other` instead.

    After token t of either text its memory has had tokens S to t - R, so the control goes as far as t < len(other) + R.

    Args:
        reader: of variant `ahn`; parts of half its `prefill_chunk` of both texts at a time.
        tokens: int64 [N].
        other: int64 [N'].
        positions: int64 [M] in [0, N), rising; the first M' are within reach.
    """
    reach = min(len(tokens), len(other) + reader.window.window_size)
    beside = torch.cat([other, other.new_zeros(max(0, reach - len(other)))])  # what fills it up is never evicted
    both = torch.stack([tokens[:reach], beside[:reach]]).to(reader.model.device)
    cache, found, start = reader.new_cache(), [], 0
    with _memory_of_second_row(reader.model):
        for part in both.split(max(1, reader.prefill_chunk // 2), dim=1):
            output = reader.model.get_decoder()(input_ids=part, past_key_values=cache, use_cache=True)
            inside = positions[(positions >= start) & (positions < start + part.shape[1])] - start
            found.append(output.last_hidden_state[0, inside.to(part.device)])
            start += part.shape[1]
    return torch.cat(found)


class _SecondRowsMemory(nn.Module):
    """A memory that both rows of a batch read with their own queries, and only the second writes to."""

    def __init__(self, cell: MemoryCell) -> None:
        super().__init__()
        self.write_gates, self._cell = cell.write_gates, cell

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, read_hidden: Tensor, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        """As the cell's own; the state's rows are alike."""
        k, v = (x[1:].expand_as(x) for x in (k, v))
        gates = {name: gate[1:].expand_as(gate) for name, gate in gates.items()}
        return self._cell.read(q, k, v, gates, read_hidden, **options)


@contextmanager
def _memory_of_second_row(model: PreTrainedModel) -> Iterator[None]:
    memories = [layer.ahn for layer in model.get_decoder().layers]
    cells = [memory.fn for memory in memories]
    for memory, cell in zip(memories, cells, strict=True):
        memory.fn = _SecondRowsMemory(cell)
    try:
        yield
    finally:
        for memory, cell in zip(memories, cells, strict=True):
            memory.fn = cell
