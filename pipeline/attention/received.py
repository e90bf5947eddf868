"""The attention that a token receives while it is in the window: what a score of retained tokens is made from."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.window import WindowSpec


@torch.no_grad()
def received_mass(q: Tensor, k: Tensor, window: WindowSpec, *, scale: float, num_skipped: int = 0) -> Tensor:
    """Sums of softmax attention over sampled queries, in linear time.

    The queries at positions t = 0, s, 2 s, .. (`WindowSpec.sampling_stride`) attend to sinks and window; token j
    gets what those with j < t < j + R give it, on average over the query heads of a group.

    Args:
        q: queries [B, Hq, T, D] of the last T tokens of a document; queries that are not among them add nothing.
        k: keys [B, Hkv, K, D] from the document's first token on, but for `num_skipped` tokens behind its sinks that
            are in no query's window.
        window: sinks and window; what is retained has no influence.
        scale: factor on the attention scores.

    Returns:
        [B, Hkv, K], float32 or the keys' dtype if that is float64; 0 for sinks.
    """
    num_tokens, first = k.shape[2], k.shape[2] - q.shape[2]
    stride, dtype = window.sampling_stride, torch.promote_types(k.dtype, torch.float32)
    first_sampled = first + -(first + num_skipped) % stride
    num_sampled = len(range(first_sampled, num_tokens, stride))
    if not num_sampled:
        return torch.zeros(k.shape[:3], dtype=dtype, device=k.device)
    per_block = -(-(window.window_size - 1) // stride) + 1
    step = per_block * stride
    num_blocks = -(-num_sampled // per_block)
    q = F.pad(q[:, :, first_sampled - first :: stride], (0, 0, 0, num_blocks * per_block - num_sampled))
    q = q.unflatten(1, (k.shape[1], -1)).unflatten(3, (num_blocks, per_block)).transpose(2, 3).to(dtype)

    start = first_sampled - step + stride  # of the first block's keys, 2 step of them up to its last query
    end = start + (num_blocks + 1) * step
    keys = F.pad(k[:, :, max(start, 0) : min(end, num_tokens)], (0, 0, max(-start, 0), max(end - num_tokens, 0)))
    keys = keys.to(dtype).unfold(2, 2 * step, step)  # [B, Hkv, blocks, D, 2 step]
    logits = torch.einsum("bhngqd,bhndk->bhngqk", q, keys) * scale
    sink_logits = torch.einsum("bhngqd,bhkd->bhngqk", q, k[:, :, : window.num_sink_tokens].to(dtype)) * scale

    device = k.device
    query = (
        first_sampled + torch.arange(num_blocks * per_block, device=device).view(num_blocks, 1, per_block, 1) * stride
    )
    key = (
        start + torch.arange(num_blocks, device=device).view(-1, 1, 1, 1) * step + torch.arange(2 * step, device=device)
    )
    in_window = (key <= query) & (query - key < window.window_size) & (key >= window.num_sink_tokens)
    logits = logits.masked_fill(~(in_window & (key < num_tokens)), -torch.inf)
    sink = torch.arange(sink_logits.shape[-1], device=device)
    probabilities = torch.cat([sink_logits.masked_fill(sink > query, -torch.inf), logits], -1).softmax(-1)
    given = probabilities[..., sink_logits.shape[-1] :] * ((key < query) & (query < num_tokens))
    given = given.mean(3).sum(3)  # [B, Hkv, blocks, 2 step]
    before, after = given.split(step, -1)
    total = F.pad(before.flatten(2), (0, step)) + F.pad(after.flatten(2), (step, 0))
    left = F.pad(total, (max(start, 0), max(num_tokens - end, 0)))
    return left[:, :, max(-start, 0) :][:, :, :num_tokens]
