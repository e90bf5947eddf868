"""Attention of a step with a `CompressiveCache`; who sees what is said in `compressive_layout`."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.sink_window import BLOCK_SIZE
from pipeline.model.compressive_cache import CompressiveLayer
from pipeline.model.compressive_layout import CompressiveLayout


def attend_compressive(q: Tensor, k: Tensor, v: Tensor, scaling: float, layer: CompressiveLayer) -> Tensor:
    """Attention of T new tokens, [B, T, Hq, D], which enter the cache; q [B, Hq, T, D], k and v [B, Hkv, T, D].

    Queries read in blocks, so that a long step costs no more than its length.
    """
    if q.shape[2] == 1:
        return _decode(q, k, v, scaling, layer)
    parts = zip(*(x.split(BLOCK_SIZE, 2) for x in (q, k, v)), strict=True)
    return torch.cat([_prefill(*part, scaling, layer) for part in parts], 1)


def _decode(q: Tensor, k: Tensor, v: Tensor, scaling: float, layer: CompressiveLayer) -> Tensor:
    """One token, over the buffer as it lies."""
    layer.append(k, v, *layer.pool(k, v))
    mask = _buffer_visibility(layer.layout, layer.num_seen, layer.keys.shape[2], q.device)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # queries of a key head as if of several tokens
    output = F.scaled_dot_product_attention(grouped, layer.keys, layer.values, attn_mask=mask, scale=scaling)
    return output.reshape(q.shape[0], 1, q.shape[1], q.shape[3])


def _prefill(q: Tensor, k: Tensor, v: Tensor, scaling: float, layer: CompressiveLayer) -> Tensor:
    """Many tokens, over the buffer as it was, the blocks that they complete, and themselves."""
    pooled_k, pooled_v = layer.pool(k, v)
    mask = _step_visibility(layer.layout, layer.num_seen, layer.keys.shape[2], q.shape[2], q.device)
    keys = torch.cat([layer.keys, pooled_k, k], 2)
    values = torch.cat([layer.values, pooled_v, v], 2)
    layer.append(k, v, pooled_k, pooled_v)
    if q.device.type == "cuda":  # where no fused kernel takes a mask and fewer key heads than query heads
        keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
    return F.scaled_dot_product_attention(
        q, keys, values, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != keys.shape[1]
    ).transpose(1, 2)


@functools.lru_cache(maxsize=1)
def _buffer_visibility(layout: CompressiveLayout, num_seen: int, size: int, device: torch.device) -> Tensor:
    """What of the buffer the newest token sees, bool [1, 1, 1, size]; one mask a token, as all layers share it."""
    born, dies = layout.lives_in_buffer(num_seen, size, device)
    return ((born < num_seen) & (dies >= num_seen))[None, None, None]


@functools.lru_cache(maxsize=8)
def _step_visibility(layout: CompressiveLayout, num_seen: int, size: int, num_new: int, device: torch.device) -> Tensor:
    """What new tokens see of the buffer, the blocks that they complete, and themselves, bool [1, 1, T, K]."""
    first, end = layout.num_blocks(num_seen), layout.num_blocks(num_seen + num_new)
    tokens = torch.arange(num_seen, num_seen + num_new, device=device)
    lives = [
        layout.lives_in_buffer(num_seen, size, device),
        layout.lives_of_blocks(torch.arange(first, end, device=device)),
        layout.lives_of_tokens(tokens),
    ]
    born, dies = torch.cat(lives, 1)
    return ((born <= tokens[:, None]) & (tokens[:, None] < dies))[None, None]
