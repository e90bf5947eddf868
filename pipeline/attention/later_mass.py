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
    """

    sums: Tensor
    counts: Tensor

    def beyond(self, window_size: int) -> tuple[Tensor, Tensor]:
        """Sums [B, Hkv, T] and counts [T] over the bins that begin outside a window of that size."""
        first = (window_size - 1).bit_length()
        return self.sums[..., first:].sum(-1), self.counts[..., first:].sum(-1)


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
    at_once = max(1, MAX_ELEMENTS // (q.shape[0] * q.shape[1] * num_tokens))
    for some in query.split(at_once):
        distance = some[:, None] - key
        logits = q[:, :, some].unflatten(1, (k.shape[1], -1)).float() @ k[:, :, None].float().transpose(-1, -2) * scale
        given = logits.masked_fill(distance < 0, -torch.inf).softmax(-1).mean(2)  # [B, Hkv, n, T]
        for number in range(num_bins):
            in_bin = (distance >= 2**number) & (distance < 2 ** (number + 1))
            sums[..., number] += (given * in_bin).sum(2)
            counts[:, number] += in_bin.sum(0)
    return LaterMass(sums, counts)
