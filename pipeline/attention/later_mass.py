"""The attention that a document's later queries give each of its tokens, by distance: what a score of retained tokens
is fitted to."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_QUERIES = 1024
"""With fewer what is read of a token is known so roughly that scores fitted to it keep worse ones."""
MAX_ELEMENTS = 2**25
"""Attention weights that exist at one time."""
MAX_ROWS = 128
"""Queries at one time: the fewer, the fewer keys behind them are looked at in vain."""


class LaterMass(NamedTuple):
    """Of each token, in bins of the distance d to the query, 2^b <= d < 2^(b + 1).

    sums: float32 [B, Hkv, T, bins], softmax over all keys, on average over the query heads of a group.
    counts: int64 [T, bins], sampled queries at such a distance.
    distances: float32 [T, bins], their mean distance; 0 where there is none.
    """

    sums: Tensor
    counts: Tensor
    distances: Tensor

    def beyond(self, window_size: int) -> "LaterMass":
        """The bins that begin outside a window of that size."""
        first = (window_size - 1).bit_length()
        return LaterMass(*(x[..., first:] for x in self))


@torch.no_grad()
def later_mass(q: Tensor, k: Tensor, *, scale: float, num_queries: int = NUM_QUERIES) -> LaterMass:
    """Full attention of evenly spaced queries of a document, linear in its length.

    Args:
        q: queries [B, Hq, T, D].
        k: keys [B, Hkv, T, D].
        scale: factor on the attention scores.
        num_queries: how many are looked at; all of a shorter document.
    """
    num_tokens = k.shape[2]
    query, key, bounds = _bins(num_tokens, num_queries, k.device)
    count = len(query)
    sums = torch.zeros(*k.shape[:3], bounds.shape[1] - 1, device=k.device)
    at_once = min(MAX_ROWS, max(1, MAX_ELEMENTS // (q.shape[0] * q.shape[1] * num_tokens)))
    for start in range(0, count, at_once):
        end = min(start + at_once, count)
        num_keys = end * num_tokens // count  # up to the last of these queries
        some = query[start:end]
        given = _given(q, k[:, :, :num_keys], some, some[:, None] - key[:num_keys], scale)
        until = F.pad(given.cumsum(2), (0, 0, 1, 0)).transpose(2, 3)  # of the first n of these queries, n = 0 ..
        inside = (bounds[:num_keys] - start).clamp(0, end - start).expand(*sums.shape[:2], -1, -1)
        sums[:, :, :num_keys] += until.gather(3, inside).diff(dim=3)
    return LaterMass(sums, *later_queries(num_tokens, num_queries, k.device))


def later_queries(
    num_tokens: int, num_queries: int = NUM_QUERIES, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """`counts` and `distances` of a document's `later_mass`, which depend on its length alone."""
    query, key, bounds = _bins(num_tokens, num_queries, device)
    counts = bounds.diff(dim=1)
    total = F.pad(query.cumsum(0), (1, 0))
    distances = total[bounds].diff(dim=1) - key[:, None] * counts
    return counts, distances / counts.clamp(min=1)


def _bins(num_tokens: int, num_queries: int, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of the queries that are looked at, and of all tokens; and of each token and bin the first of these
    queries in it, behind the last bin's the first one beyond, [T, bins + 1]."""
    count = min(num_queries, num_tokens)
    query = torch.arange(1, count + 1, device=device) * num_tokens // count - 1
    key = torch.arange(num_tokens, device=device)
    num_bins = max(1, (num_tokens - 1).bit_length())
    return query, key, torch.searchsorted(query, key[:, None] + 2 ** torch.arange(num_bins + 1, device=device))


@torch.no_grad()
def mean_later_mass(q: Tensor, k: Tensor, window_size: int, *, scale: float) -> Tensor:
    """The mass that each token is given on average by every query that comes `window_size` tokens later or more.

    Args:
        q: queries [B, Hq, T, D].
        k: keys [B, Hkv, T, D].
        window_size: R.
        scale: factor on the attention scores.

    Returns:
        float32 [B, Hkv, T]; 0 for tokens without such a query. Quadratic in T.
    """
    num_tokens = k.shape[2]
    token = torch.arange(num_tokens, device=k.device)
    sums = torch.zeros(k.shape[:3], device=k.device)
    for some in token.split(max(1, MAX_ELEMENTS // (q.shape[0] * q.shape[1] * num_tokens))):
        distance = some[:, None] - token
        sums += (_given(q, k, some, distance, scale) * (distance >= window_size)).sum(2)
    return sums / (num_tokens - window_size - token).clamp(min=1)


def _given(q: Tensor, k: Tensor, queries: Tensor, distance: Tensor, scale: float) -> Tensor:
    """Full attention of queries at n positions, which are `distance` [n, T] behind each token, on average over the
    query heads of a group: [B, Hkv, n, T]."""
    grouped = q[:, :, queries].unflatten(1, (k.shape[1], -1)).float()
    logits = grouped @ k[:, :, None].float().transpose(-1, -2) * scale
    return logits.masked_fill(distance < 0, -torch.inf).softmax(-1).mean(2)
