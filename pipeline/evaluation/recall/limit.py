"""What a linear memory could recall: least squares from the model's own keys to its values.

The delta rule goes towards the linear map from keys to values with the smallest squared error, so that map, fitted to
the facts alone, is where a memory with perfect gates and without forgetting would end. It has nothing to learn: it is
read with the model's own queries and added to what attention sees, as a memory's output is. Which token of a fact a
head keeps it at, and how loud it reads, is chosen once, by trying.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.ahn.base import l2_normalise
from pipeline.evaluation.recall.documents import RecallDocuments
from pipeline.evaluation.recall.scoring import score_memory

RIDGE = 0.1
"""Of the least squares; keys have length 1."""
TOKENS = range(5)
GAINS = (0.0, 1.0, 8.0)


@dataclass(frozen=True)
class HeadReadout:
    """A head's facts lie at token 0 (their key), 1 (their value) or a later one, to which the layers below may have
    carried both; `gain` 0 reads nothing."""

    token: int = 0
    gain: float = 0.0


class LeastSquaresMemory(nn.Module):
    """In the place of a memory cell: the queries of each head read gain q M, with M = argmin |K M - V|^2 + RIDGE |M|^2
    over one token a fact; the `num_facts` facts are the first tokens that were evicted."""

    def __init__(self, num_facts: int, heads: Sequence[HeadReadout]) -> None:
        super().__init__()
        self.num_facts, self.heads = num_facts, heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *_: Tensor, **__: object) -> Tensor:
        """q [B, E, Hq, D], k and v [B, E, Hkv, D] -> [B, E, Hq, D], in q's dtype; computed in float64."""
        group = q.shape[2] // k.shape[2]
        outputs = [
            self._read(readout, q[:, :, head], k[:, :, head // group], v[:, :, head // group])
            for head, readout in enumerate(self.heads)
        ]
        return torch.stack(outputs, 2).to(q.dtype)

    def _read(self, readout: HeadReadout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        written = slice(readout.token, readout.token + 2 * self.num_facts, 2)
        keys, values = l2_normalise(k[:, written].double()), v[:, written].double()
        gram = keys.mT @ keys + RIDGE * torch.eye(keys.shape[-1], dtype=keys.dtype)
        return readout.gain * l2_normalise(q.double()) @ torch.linalg.solve(gram, keys.mT @ values)


Readouts = dict[tuple[int, int], HeadReadout]
"""Of (layer, head)."""


def score_limit(model: PreTrainedModel, documents: RecallDocuments, readouts: Readouts) -> float:
    """Share of right answers with sinks, window and these readouts; the model's memories are put back."""
    layers = model.get_decoder().layers
    memories = [layer.ahn.fn for layer in layers]
    heads = range(model.config.num_attention_heads)
    for number, layer in enumerate(layers):
        layer.ahn.fn = LeastSquaresMemory(documents.num_facts, [readouts[number, head] for head in heads])
    share = score_memory(model, documents)
    for layer, memory in zip(layers, memories, strict=True):
        layer.ahn.fn = memory
    return share


def find_readouts(model: PreTrainedModel, documents: RecallDocuments) -> Readouts:
    """The readouts that answer most, head by head from the last layer on, each given those before it."""
    config = model.config
    places = [(layer, head) for layer in range(config.num_hidden_layers) for head in range(config.num_attention_heads)]
    choices = [HeadReadout(token, gain) for gain in GAINS for token in TOKENS if gain or token == 0]
    best = dict.fromkeys(places, HeadReadout())
    for place in reversed(places):
        tried = [best | {place: choice} for choice in choices]
        best = max(tried, key=lambda readouts: score_limit(model, documents, readouts))
    return best
