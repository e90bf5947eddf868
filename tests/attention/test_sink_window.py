"""Blocked sinks + window attention against SDPA with the dense mask: outputs and gradients, float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from pipeline.attention import sink_window
from pipeline.attention.sink_window import BLOCK_SIZE, sink_window_attention
from pipeline.attention.window import WindowSpec

SCALE = 0.3
WINDOWS = [WindowSpec(0, 1), WindowSpec(0, 7), WindowSpec(4, 12), WindowSpec(32, 96), WindowSpec(3, 1000)]


def draw(batch, length, heads, kv_heads, dim=8):
    generator = torch.Generator().manual_seed(length * 31 + heads)
    shapes = [(batch, heads, length, dim), (batch, kv_heads, length, dim), (batch, kv_heads, length, dim)]
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


def dense(q, k, v, window, padding=(0, 0)):
    """[B, T, H, D] by one dense mask; queries are the last T of K tokens; rows start after `padding` columns."""
    num_keys = k.shape[2]
    query, key = torch.arange(num_keys - q.shape[2], num_keys)[:, None], torch.arange(num_keys)[None]
    rows = [torch.from_numpy(window.visible((query - p).numpy(), (key - p).numpy())) & (key >= p) for p in padding]
    mask = torch.stack(rows[: q.shape[0]])[:, None]
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True)
    return output.transpose(1, 2).nan_to_num(0.0)


def assert_same(actual, expected, inputs):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad((actual * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-11)


@pytest.mark.parametrize("length", [1, 17, 63, 64, 65, 100, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 88])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_equals_the_dense_mask(length, window):
    inputs = draw(2, length, heads=4, kv_heads=2)
    assert_same(sink_window_attention(*inputs, window, scale=SCALE), dense(*inputs, window), inputs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1)])
def test_every_grouping_of_heads(heads, kv_heads):
    inputs, window = draw(1, 90, heads, kv_heads), WindowSpec(4, 12)
    assert_same(sink_window_attention(*inputs, window, scale=SCALE), dense(*inputs, window), inputs)


@pytest.mark.parametrize("num_queries", [1, 5, 40])
@pytest.mark.parametrize("window", WINDOWS[1:4], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (0, 9)])
def test_a_step_with_a_cache_sees_what_the_whole_forward_sees(num_queries, window, padding):
    """Only the window's columns and the sinks' slots are kept, as a cache keeps them; rows start at other columns."""
    q, k, v = draw(2, 150, heads=4, kv_heads=2)
    expected = dense(q[:, :, -num_queries:], k, v, window, padding)
    kept = min(150, window.window_size + num_queries - 1)
    sinks = [torch.stack([x[row, :, p : p + window.num_sink_tokens] for row, p in enumerate(padding)]) for x in (k, v)]
    actual = sink_window_attention(
        q[:, :, -num_queries:],
        k[:, :, -kept:],
        v[:, :, -kept:],
        window,
        scale=SCALE,
        first_position=150 - kept - torch.tensor(padding),
        sink_k=sinks[0],
        sink_v=sinks[1],
    )
    assert_same(actual, expected, (q, k, v))


@pytest.mark.parametrize("window", WINDOWS[1:4], ids=str)
@pytest.mark.parametrize("num_queries", [150, 60])
def test_the_mask_that_cuda_uses_shows_the_same_tokens(window, num_queries):
    """flex_attention, uncompiled on the CPU, with the mask that the CUDA path builds."""
    q, k, v = (x.detach() for x in draw(1, 150, heads=4, kv_heads=2))
    q = q[:, :, -num_queries:]
    mask = sink_window.flex_block_mask(window, num_queries, 150, torch.device("cpu"))
    output = flex_attention(q, k, v, block_mask=mask, scale=SCALE, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(output, dense(q, k, v, window), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", WINDOWS[:3], ids=str)
@pytest.mark.parametrize("num_queries", [1, 20, 130])
def test_tokens_behind_the_sinks_that_nobody_sees_can_be_left_out(window, num_queries):
    q, k, v = draw(2, 150, heads=4, kv_heads=2)
    q, reach = q[:, :, -num_queries:], num_queries + window.window_size  # one more than is seen: the next to be evicted
    num_skipped = 150 - reach - window.num_sink_tokens
    kept = [torch.cat([x[:, :, : window.num_sink_tokens], x[:, :, -reach:]], 2) for x in (k, v)]
    expected = dense(q, k, v, window)
    assert num_skipped > 0
    actual = sink_window_attention(q, *kept, window, scale=SCALE, num_skipped=num_skipped)
    assert_same(actual, expected, (k, v))
    mask = sink_window.flex_block_mask(window, num_queries, kept[0].shape[2], torch.device("cpu"), num_skipped)
    on_cuda = flex_attention(q.detach(), *(x.detach() for x in kept), block_mask=mask, scale=SCALE, enable_gqa=True)
    torch.testing.assert_close(on_cuda.transpose(1, 2), expected.detach(), rtol=0, atol=1e-6)
