"""Softmax attention to sinks + sliding window in time and memory linear in length.

On the CPU (and as the reference on any device) queries are cut into blocks and folded into the batch: a block of C
queries sees the C + window_size - 1 keys up to its end, and the sinks beside them, in one SDPA call. On CUDA
flex_attention skips the blocks nobody sees; the window and the sinks enter its mask as tensors, so that random
windows do not recompile.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from pipeline.attention.window import WindowSpec

BLOCK_SIZE = 256
logger = logging.getLogger(__name__)


def sink_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: WindowSpec,
    *,
    scale: float,
    first_position: Tensor | None = None,
    sink_k: Tensor | None = None,
    sink_v: Tensor | None = None,
    num_skipped: int = 0,
) -> Tensor:
    """Attention of the last T of K consecutive tokens to sinks and window.

    Args:
        q: queries [B, Hq, T, D] of the last T tokens.
        k, v: keys and values [B, Hkv, K, D], K >= T, Hq a multiple of Hkv.
        window: who sees what.
        scale: factor on the scores.
        first_position: position of the first of the K tokens in its row's document, int64 [B]; negative for left
            padding, which nobody sees. None: all rows start at 0.
        sink_k, sink_v: the document's first num_sink_tokens [B, Hkv, S, D] when K does not start with them (a
            cache). Slots of tokens that have not been seen yet are never looked at.
        num_skipped: tokens of the document that are left out of k and v behind its sinks, with which they start. The
            first query's window begins behind them.

    Returns:
        [B, T, Hq, D]. Rows of padding queries hold zeros.
    """
    if q.device.type == "cuda" and first_position is None and sink_k is None:
        return _flex_attention(q, k, v, window, scale, num_skipped).transpose(1, 2)
    if sink_k is None:
        num_sinks = window.num_sink_tokens
        sink_k, sink_v = k[:, :, :num_sinks], v[:, :, :num_sinks]
        if num_skipped:
            k, v = k[:, :, num_sinks:], v[:, :, num_sinks:]
            first_position = torch.full((q.shape[0],), num_sinks + num_skipped, device=q.device)
    return _blocked_attention(q, k, v, window, scale, first_position, sink_k, sink_v)


def _blocked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: WindowSpec,
    scale: float,
    first_position: Tensor | None,
    sink_k: Tensor,
    sink_v: Tensor,
) -> Tensor:
    batch, num_heads, num_queries, _ = q.shape
    block = min(BLOCK_SIZE, num_queries)
    num_blocks = -(-num_queries // block)
    before = k.shape[2] - num_queries
    reach = min(window.window_size - 1, k.shape[2] - 1)  # how far before its first query a block looks
    crop, pad_left = max(0, before - reach), max(0, reach - before)
    pad_right = num_blocks * block - num_queries

    def fold(x: Tensor, sinks: Tensor) -> Tensor:  # [B, H, K, D] -> [B * blocks, H, S + reach + block, D]
        x = F.pad(x[:, :, crop:], (0, 0, pad_left, pad_right))
        x = x.unfold(2, reach + block, block).permute(0, 2, 1, 4, 3)
        return torch.cat([sinks[:, None].expand(-1, num_blocks, -1, -1, -1), x], dim=3).flatten(0, 1)

    q = F.pad(q, (0, 0, 0, pad_right)).unflatten(2, (num_blocks, block)).transpose(1, 2).flatten(0, 1)
    first = torch.zeros(1, dtype=torch.int64, device=q.device) if first_position is None else first_position
    mask = _block_mask(first + before, window, sink_k.shape[2], reach, block, num_blocks)
    output = F.scaled_dot_product_attention(
        q, fold(k, sink_k), fold(v, sink_v), attn_mask=mask.expand(batch, -1, -1, -1, -1).flatten(0, 1), scale=scale,
        enable_gqa=num_heads != k.shape[1],
    )  # fmt: skip
    output = output.unflatten(0, (batch, num_blocks)).transpose(2, 3).flatten(1, 2)
    return output[:, :num_queries]


def _block_mask(
    first_query: Tensor, window: WindowSpec, num_sinks: int, reach: int, block: int, num_blocks: int
) -> Tensor:
    """Visibility [B, blocks, 1, block, S + reach + block] for queries that start at positions `first_query` [B].

    A sink is looked up in its own slot exactly when it is out of the window, so no key is counted twice.
    """
    device = first_query.device
    row = torch.arange(block, device=device)[:, None]
    query = (first_query[:, None] + torch.arange(num_blocks, device=device) * block)[..., None, None] + row
    sink = torch.arange(num_sinks, device=device)
    sees_sink = query - sink >= window.window_size
    offset = torch.arange(reach + block, device=device) - reach - row  # key position - query position
    in_reach = (offset <= 0) & (offset > -window.window_size)
    sees_key = in_reach & (query + offset >= 0)
    return torch.cat([sees_sink, sees_key], dim=-1)[:, :, None]


def _flex_attention(q: Tensor, k: Tensor, v: Tensor, window: WindowSpec, scale: float, num_skipped: int) -> Tensor:
    mask = flex_block_mask(window, q.shape[2], k.shape[2], q.device, num_skipped)
    return _compiled_flex()(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled_flex() -> object:
    logger.info("sinks + window attention runs on flex_attention")
    return torch.compile(flex_attention, dynamic=True)


@functools.lru_cache(maxsize=8)
def flex_block_mask(
    window: WindowSpec, num_queries: int, num_keys: int, device: torch.device, num_skipped: int = 0
) -> BlockMask:
    """Visibility for the last `num_queries` of `num_keys` tokens; one mask a forward pass, as all layers share it."""
    num_sinks = torch.tensor(window.num_sink_tokens, device=device)
    window_size = torch.tensor(window.window_size, device=device)
    skipped = torch.tensor(num_skipped, device=device)
    first_query = torch.tensor(num_keys + num_skipped - num_queries, device=device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query = query + first_query
        key = torch.where(key < num_sinks, key, key + skipped)
        return (key <= query) & ((key < num_sinks) | (query - key < window_size))

    return create_block_mask(visible, None, None, num_queries, num_keys, device=device)
