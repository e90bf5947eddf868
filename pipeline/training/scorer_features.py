"""What scorers are fitted to: each layer's candidates with their features and the mass that later queries give them,
taken from forwards with full attention."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.attention.later_mass import later_mass
from pipeline.attention.received import received_mass
from pipeline.attention.window import Document


class Candidates(NamedTuple):
    """N tokens in one layer. `hidden` [N, hidden]; `received`, `mass` float32 [N, Hkv]: what queries in the window and
    what later ones gave them; `counts` float32 [N]: sampled later queries."""

    hidden: Tensor
    received: Tensor
    mass: Tensor
    counts: Tensor


class FeatureStore:
    """Takes the place of a forward's `record`: keeps about `max_tokens` candidates, evenly spaced, on the CPU.

    Args:
        documents: as they lie in their row, each with the window that tokens have left when they are candidates.
        max_tokens: of all documents together.
        layers: that have a scorer.

    Attributes:
        layers: the candidates of each of them, as many in each.
    """

    def __init__(self, documents: Sequence[Document], max_tokens: int, layers: Collection[int]) -> None:
        self._documents, self._scored = tuple(documents), layers
        total = sum(max(0, d.length - d.window.without_retained.lossless_budget) for d in documents)
        self._every = max(1, -(-total // max_tokens))
        self.layers: dict[int, Candidates] = {}

    def record(self, layer: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> None:
        """As PrefixStore's."""
        found = []
        for d in self._documents if layer in self._scored else ():
            rows, tokens = slice(d.row, d.row + 1), slice(d.start, d.end)
            q, k = query[rows, :, tokens], key[rows, :, tokens]
            received = received_mass(q, k, d.window, scale=scale)[0].T
            sums, counts = later_mass(q, k, scale=scale).beyond(d.window.window_size)
            first = d.window.num_sink_tokens
            chosen = first + counts[first:].nonzero().squeeze(1)[:: self._every]
            whole = hidden[d.row, tokens], received.float(), sums[0].T, counts.float()
            found.append([x[chosen].cpu() for x in whole])
        if found:
            self.layers[layer] = Candidates(*map(torch.cat, zip(*found, strict=True)))


def join_candidates(stores: Sequence[FeatureStore]) -> list[Candidates]:
    """Of each layer those of all stores, in the layers' order; empty where no store has any."""
    filled = [store.layers for store in stores if store.layers]
    if not filled:
        return []
    return [Candidates(*map(torch.cat, zip(*(s[layer] for s in filled), strict=True))) for layer in sorted(filled[0])]
