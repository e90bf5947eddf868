"""Reading a text with the memory of another one: the control of what a memory knows of its own text.

Both texts are rows of one batch, so that at each position both memories have had as many tokens. Each layer's memory is
that of the second row, which is read as always; the first row's tokens are never written, and so nothing that is
computed of it knows more of its past than the windows reach.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.ahn.base import Gates, MemoryCell
from pipeline.evaluation.lending_cache import LendingCache, LendingLayer
from pipeline.evaluation.reader import Reader
from pipeline.model.augment import memory_layers
from pipeline.model.cache import HippocampusCache


def read_beside(reader: Reader, tokens: Tensor, beside: Tensor, cache: HippocampusCache) -> Iterator[Tensor]:
    """Goes on reading `tokens` into the first row of `cache`, with the memory of the second row, which reads `beside`.

    Args:
        reader: of a variant with a memory; parts of half its `prefill_chunk` of both texts at a time.
        tokens, beside: int64 [N] each.
        cache: new, or of an earlier call.

    Yields:
        Final normed hidden states of `tokens`, [n, hidden], part after part; what is not taken is not read.
    """
    both = torch.stack([tokens, beside]).to(reader.model.device)
    for part in both.split(max(1, reader.prefill_chunk // 2), dim=1):
        with torch.no_grad(), _memory_of_second_row(reader.model):
            output = reader.model.get_decoder()(input_ids=part, past_key_values=cache, use_cache=True)
        yield output.last_hidden_state[0]


def new_pair(reader: Reader) -> LendingCache:
    """An empty cache of two texts for `read_beside`."""
    return LendingCache(reader.model.config, reader.kept, memory="on" if reader.has_cell else "off")


def own_row(cache: HippocampusCache) -> HippocampusCache:
    """A cache of the first text alone, with the other's memory and what it retains, that goes on from there."""
    own = cache.snapshot()
    first = torch.tensor([0], device=own.layers[0].keys.device)
    for number, layer in enumerate(own.layers):
        if isinstance(layer, LendingLayer):
            own.layers[number] = layer.of_first()
        else:
            layer.batch_select_indices(first)
    return own


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
    memories = [layer.ahn for layer in memory_layers(model).values()]
    cells = [memory.fn for memory in memories]
    for memory, cell in zip(memories, cells, strict=True):
        memory.fn = _SecondRowsMemory(cell)
    try:
        yield
    finally:
        for memory, cell in zip(memories, cells, strict=True):
            memory.fn = cell
