"""What scorers are fitted to: each layer's candidates with their features and what later queries read of them, taken
from forwards with full attention."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.later_mass import later_mass
from pipeline.attention.received import received_mass
from pipeline.attention.window import Document


class Candidates(NamedTuple):
    """N tokens in one layer.

    hidden: [N, hidden]. received: float32 [N, Hkv], the mass that queries in the window gave them. By bins of their
    distance to queries that come later: read, float32 [N, Hkv, bins], the mass that those give them, times the
    distance of the token's value from the mean value of its document, which is what attention's output loses with the
    token; counts, distances, float32 [N, bins]: sampled queries and their mean distance.
    """

    hidden: Tensor
    received: Tensor
    read: Tensor
    counts: Tensor
    distances: Tensor

    @classmethod
    def join(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """All parts' tokens; with fewer bins than others a part has empty ones behind them."""
        bins = max(part.counts.shape[1] for part in parts)
        padded = (
            part._replace(**{name: _pad(getattr(part, name), bins) for name in ("read", "counts", "distances")})
            for part in parts
        )
        return cls(*map(torch.cat, zip(*padded, strict=True)))


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
            q, k, v = (x[rows, :, tokens] for x in (query, key, value))
            received = received_mass(q, k, d.window, scale=scale)[0].T
            sums, counts, distances = later_mass(q, k, scale=scale).beyond(d.window.window_size)
            read = (sums[0] * _deviation(v[0])[..., None]).transpose(0, 1)
            first = d.window.num_sink_tokens
            chosen = first + counts[first:].sum(1).nonzero().squeeze(1)[:: self._every]
            whole = hidden[d.row, tokens], received.float(), read, counts.float(), distances
            found.append(Candidates(*(x[chosen].cpu() for x in whole)))
        if found:
            self.layers[layer] = Candidates.join(found)


def _deviation(values: Tensor) -> Tensor:
    """Distance of each value [Hkv, T, D] from the mean over T, float32 [Hkv, T]."""
    values = values.float()
    return (values - values.mean(1, keepdim=True)).norm(dim=-1)


def _pad(x: Tensor, bins: int) -> Tensor:
    return F.pad(x, (0, bins - x.shape[-1]))


def join_candidates(stores: Sequence[FeatureStore]) -> list[Candidates]:
    """Of each layer those of all stores, in the layers' order; empty where no store has any."""
    filled = [store.layers for store in stores if store.layers]
    if not filled:
        return []
    return [Candidates.join([layers[layer] for layers in filled]) for layer in sorted(filled[0])]
