"""Softmax attention to sinks, retained tokens and sliding window in time and memory linear in length.

Queries are cut into blocks. A block sees the sinks, the M + C - 1 tokens that are retained, or wait to be dropped,
when it starts, and the window's tokens up to its end; its keys and values are gathered, each key-value head's own. A
token is masked from the query on at which it is dropped, not from where it leaves the window. One softmax over all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.attention.retained_blocks import MAX_ROWS, block_size
from pipeline.attention.retention import drop_events
from pipeline.attention.window import WindowSpec


def retained_attention(q: Tensor, k: Tensor, v: Tensor, window: WindowSpec, order: Tensor, *, scale: float) -> Tensor:
    """Attention of the last T of a document's K tokens.

    Args:
        q: queries [B, Hq, T, D] of the last T tokens.
        k, v: keys and values [B, Hkv, K, D] from the document's first token on, Hq a multiple of Hkv.
        window: sinks, window and retained tokens.
        order: candidates in the order in which each key-value head drops them, int64 [B, Hkv, E]: `drop_order` of the
            scores of tokens S .. K - R - 1.
        scale: factor on the scores.

    Returns:
        [B, T, Hq, D].
    """
    num_tokens, num_queries = k.shape[2], q.shape[2]
    block = block_size(window, num_queries)
    drops = drop_positions(order, window, num_tokens, never=num_tokens + block)
    columns = visible_columns(drops, window, num_tokens - num_queries, block)
    at_once = max(1, MAX_ROWS // columns[:, :, 0].numel())
    q = F.pad(q, (0, 0, 0, columns.shape[2] * block - num_queries))
    outputs = []
    for first in range(0, columns.shape[2], at_once):
        some = columns[:, :, first : first + at_once]
        queries = q[:, :, first * block : (first + some.shape[2]) * block]
        arguments = queries, k, v, drops, some, num_tokens - num_queries + first * block, scale
        whole = columns.shape[2] <= at_once or not torch.is_grad_enabled()
        outputs.append(_attend(*arguments) if whole else checkpoint(_attend, *arguments, use_reentrant=False))
    return torch.cat(outputs, 1)[:, :num_queries]


def drop_positions(order: Tensor, window: WindowSpec, num_tokens: int, never: int) -> Tensor:
    """The query at which each token is dropped, int64 [B, Hkv, K]; `never` where none does."""
    reach = window.num_sink_tokens + window.window_size
    events = drop_events(order, max(0, num_tokens - reach), never=never - reach)
    return F.pad(events + reach, (window.num_sink_tokens, window.window_size), value=never)[..., :num_tokens]


def visible_columns(drops: Tensor, window: WindowSpec, first_query: int, block: int) -> Tensor:
    """The tokens that the queries of each block look at.

    Args:
        drops: the query at which each token is dropped, [B, Hkv, K].
        first_query: of the queries, consecutive up to the K-th token.
        block: of how many of them.

    Returns:
        Positions, int64 [B, Hkv, blocks, S + M + C - 1 + R - 1 + block]; -1 for no token.
    """
    (batch, num_heads, num_tokens), num_sinks = drops.shape, window.num_sink_tokens
    num_blocks = -(-(num_tokens - first_query) // block)
    sinks = torch.arange(min(num_sinks, num_tokens), device=drops.device)
    starts = first_query + torch.arange(num_blocks, device=drops.device) * block
    recent = starts[:, None] + torch.arange(1 - window.window_size, block, device=drops.device)
    recent = torch.where((recent >= num_sinks) & (recent < num_tokens), recent, -1)
    held = _held(drops, window, first_query, block, num_blocks)
    shape = batch, num_heads, num_blocks, -1
    return torch.cat([sinks.expand(shape), held, recent.expand(shape)], 3)


def _held(drops: Tensor, window: WindowSpec, first_query: int, block: int, num_blocks: int) -> Tensor:
    """Candidates that are still there when each block starts, int64 [B, Hkv, blocks, M + C - 1], in order; -1 for none.

    Every head has as many: their number is known without a look at them.
    """
    (batch, num_heads, num_tokens), num_held = drops.shape, window.num_held
    first_left = window.num_sink_tokens + window.window_size
    starts = range(first_query, first_query + num_blocks * block, block)
    counts = [min(max(start - first_left + 1, 0), num_held) for start in starts]
    position = torch.arange(num_tokens, device=drops.device)
    enters = _blocks_before(position + window.window_size - first_query, block, num_blocks)
    enters = torch.where(position < window.num_sink_tokens, num_blocks, enters)
    repeats = (_blocks_before(drops - first_query, block, num_blocks) - enters).clamp(min=0).flatten()
    token = torch.arange(drops.numel(), device=drops.device)
    token = token.repeat_interleave(repeats, output_size=batch * num_heads * sum(counts))
    nth = torch.arange(len(token), device=drops.device) - (repeats.cumsum(0) - repeats)[token]
    blocks = (enters.expand_as(drops).flatten()[token] + nth).view(batch, num_heads, -1)
    found = (token % num_tokens).view(blocks.shape).gather(2, blocks.argsort(dim=2, stable=True))
    padded = [
        F.pad(part, (0, num_held - count), value=-1) for part, count in zip(found.split(counts, 2), counts, strict=True)
    ]
    return torch.stack(padded, 2)


def _blocks_before(offset: Tensor, block: int, num_blocks: int) -> Tensor:
    """How many blocks start before a query, counted from the first one."""
    return (-(-offset // block)).clamp(0, num_blocks)


def _attend(q: Tensor, k: Tensor, v: Tensor, drops: Tensor, columns: Tensor, first_query: int, scale: float) -> Tensor:
    """Whole blocks: q [B, Hq, blocks * n, D], columns [B, Hkv, blocks, C] -> [B, blocks * n, Hq, D]."""
    (batch, num_kv_heads, num_blocks, num_columns), num_tokens = columns.shape, k.shape[2]
    block = q.shape[2] // num_blocks
    is_token, index = columns >= 0, columns.clamp(min=0)
    until = torch.where(is_token, drops.gather(2, index.flatten(2)).view(index.shape), 0)[..., None, :]
    query = first_query + torch.arange(num_blocks * block, device=q.device).view(num_blocks, block, 1)
    mask = (index[..., None, :] <= query) & (query < until)  # [B, Hkv, blocks, n, C]
    heads = torch.arange(batch * num_kv_heads, device=q.device).view(batch, num_kv_heads, 1, 1)
    index = (index + heads * num_tokens).flatten()
    q = q.unflatten(2, (num_blocks, block)).unflatten(1, (num_kv_heads, -1)).transpose(2, 3).flatten(0, 2)
    group = q.shape[1]
    k, v = (
        x.flatten(0, 2).index_select(0, index).view(-1, 1, num_columns, x.shape[3]).expand(-1, group, -1, -1)
        for x in (k, v)
    )
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.flatten(0, 2)[:, None], scale=scale)
    output = output.view(batch, num_kv_heads, num_blocks, group, block, -1)
    return output.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(1, 2)
