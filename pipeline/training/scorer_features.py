"""What scorers are fitted to: each layer's candidates with their features and the mass that later queries give them,
taken from forwards with full attention."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pipeline.attention.later_mass import later_mass
from pipeline.attention.received import received_mass
from pipeline.attention.window import Document, WindowSpec


class Candidates(NamedTuple):
    """N tokens in one layer. `hidden` [N, hidden]; `received`, `mass` float32 [N, Hkv]: what queries in the window and
    what later ones gave them; `counts` float32 [N]: sampled later queries."""

    hidden: Tensor
    received: Tensor
    mass: Tensor
    counts: Tensor


class FeatureStore:
    """Takes the place of a forward's `record`: keeps up to `max_tokens` candidates a document, evenly spaced.

    Args:
        documents: as they lie in their row.
        window: sinks and window that tokens have left when they are candidates.
        max_tokens: a document.
    """

    def __init__(self, documents: Sequence[Document], window: WindowSpec, max_tokens: int) -> None:
        self._documents, self._window, self._max_tokens = tuple(documents), window, max_tokens
        self.layers: dict[int, list[Candidates]] = {}

    def record(self, layer: int, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> None:
        """As PrefixStore's."""
        found = []
        for d in self._documents:
            rows, tokens = slice(d.row, d.row + 1), slice(d.start, d.end)
            q, k = query[rows, :, tokens], key[rows, :, tokens]
            received = received_mass(q, k, self._window, scale=scale)[0].T
            sums, counts = later_mass(q, k, scale=scale).beyond(self._window.window_size)
            chosen = self._choose(counts)
            whole = hidden[d.row, tokens], received, sums[0].T, counts
            found.append(Candidates(*(x[chosen].detach().clone() for x in whole[:3]), counts[chosen].float()))
        self.layers[layer] = found

    def _choose(self, counts: Tensor) -> Tensor:
        first = self._window.num_sink_tokens
        candidates = first + counts[first:].nonzero().squeeze(1)
        every = max(1, -(-len(candidates) // self._max_tokens))
        return candidates[::every]
