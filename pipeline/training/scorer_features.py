"""What scorers are fitted to: each layer's candidates with their features and what later queries read of them, taken
from forwards with full attention."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.later_mass import LaterMass, later_mass, later_queries
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


class CachedMasses(NamedTuple):
    """A sample's part of a teacher cache's later masses. `sums`: float32 [L, Hkv, n, bins]; of every `step`-th of its
    tokens, from the first on."""

    sums: Tensor
    step: int

    def of_document(self, document: Document, layer: int) -> tuple[Tensor, LaterMass]:
        """Which of the document's tokens are kept, int64 [n'], and what the `layer`-th layer has of them."""
        first = -(-document.start // self.step)
        kept = torch.arange(first * self.step, document.end, self.step) - document.start
        counts, distances = later_queries(document.length)
        sums = self.sums[layer, :, first : first + len(kept), : counts.shape[1]]
        return kept, LaterMass(sums[None], counts[kept], distances[kept])


class FeatureStore:
    """Takes the place of a forward's `record`: keeps about `max_tokens` candidates, evenly spaced, on the CPU.

    Args:
        documents: as they lie in their row, each with the window that tokens have left when they are candidates.
        max_tokens: of all documents together.
        layers: that have a scorer.
        masses: of the sample, where a teacher cache has them; else they are computed.

    Attributes:
        layers: the candidates of each of them, as many in each.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        max_tokens: int,
        layers: Collection[int],
        masses: CachedMasses | None = None,
    ) -> None:
        self._documents, self._scored, self._masses = tuple(documents), sorted(layers), masses
        total = sum(max(0, d.length - d.window.without_retained.lossless_budget) for d in documents)
        known = total if masses is None else -(-total // masses.step)
        self._every = max(1, -(-known // max_tokens))
        self.layers: dict[int, Candidates] = {}

    def record(self, layer: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> None:
        """As PrefixStore's."""
        found = []
        for d in self._documents if layer in self._scored else ():
            rows, tokens = slice(d.row, d.row + 1), slice(d.start, d.end)
            q, k, v = (x[rows, :, tokens] for x in (query, key, value))
            received = received_mass(q, k, d.window, scale=scale)[0].T
            known, mass = self._later_mass(d, layer, q, k, scale)
            sums, counts, distances = mass.beyond(d.window.window_size)
            is_candidate = (known >= d.window.num_sink_tokens) & counts.any(1)
            rest = is_candidate.nonzero().squeeze(1)[:: self._every]
            chosen = known[rest]
            read = (sums[0, :, rest] * _deviation(v[0])[:, chosen, None]).transpose(0, 1)
            of_token = hidden[d.row, tokens][chosen], received[chosen].float()
            found.append(Candidates(*(x.cpu() for x in (*of_token, read, counts[rest].float(), distances[rest]))))
        if found:
            self.layers[layer] = Candidates.join(found)

    def _later_mass(self, d: Document, layer: int, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, LaterMass]:
        """Positions in the document of the tokens of which it is known, int64 [n], and their later mass."""
        if self._masses is None:
            return torch.arange(d.length, device=k.device), later_mass(q, k, scale=scale)
        kept, mass = self._masses.of_document(d, self._scored.index(layer))
        return kept.to(k.device), LaterMass(*(x.to(k.device) for x in mass))


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
