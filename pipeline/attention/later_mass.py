"""The attention that a document's later queries give each of its tokens, by distance: what a score of retained tokens
is fitted to."""

from typing import NamedTuple

import torch
from torch import Tensor

NUM_QUERIES = 128
MAX_ELEMENTS = 2**25
"""Attention weights that exist at one time."""


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
    num_tokens, device = k.shape[2], k.device
    count = min(num_queries, num_tokens)
    query = torch.arange(1, count + 1, device=device) * num_tokens // count - 1
    num_bins = max(1, (num_tokens - 1).bit_length())
    key = torch.arange(num_tokens, device=device)
    sums = torch.zeros(*k.shape[:3], num_bins, device=device)
    counts = torch.zeros(num_tokens, num_bins, dtype=torch.int64, device=device)
    distances = torch.zeros(num_tokens, num_bins, device=device)
    at_once = max(1, MAX_ELEMENTS // (q.shape[0] * q.shape[1] * num_tokens))
    for some in query.split(at_once):
        distance = some[:, None] - key
        given = _given(q, k, some, distance, scale)
        for number in range(num_bins):
            in_bin = (distance >= 2**number) & (distance < 2 ** (number + 1))
            sums[..., number] += (given * in_bin).sum(2)
            counts[:, number] += in_bin.sum(0)
            distances[:, number] += (distance * in_bin).sum(0)
    return LaterMass(sums, counts, distances / counts.clamp(min=1))


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
