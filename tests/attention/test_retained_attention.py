"""Attention to sinks, retained tokens and window against SDPA with a dense mask, drawn from the rule token by token."""

import pytest
import torch
import torch.nn.functional as F

from pipeline.attention import retained_attention as module
from pipeline.attention import retained_blocks
from pipeline.attention.retained_attention import retained_attention
from pipeline.attention.retention import drop_order
from pipeline.attention.window import WindowSpec
from tests.attention.retention_simulator import simulate_drops
from tests.attention.test_sink_window import SCALE, assert_same, draw

WINDOWS = [WindowSpec(0, 1, 1), WindowSpec(0, 7, 3, 4), WindowSpec(4, 12, 8), WindowSpec(4, 12, 8, 4)]
WINDOWS += [WindowSpec(32, 96, 64), WindowSpec(3, 1000, 2)]


def draw_scores(window, batch, heads, length):
    num_candidates = max(0, length - window.num_sink_tokens - window.window_size)
    return torch.randn(batch, heads, num_candidates, generator=torch.Generator().manual_seed(length)).round(decimals=1)


def order_of(window, scores):
    return drop_order(scores, window.num_retained_tokens, window.decision_interval)


def dense_mask(window, scores, length):
    """[B, Hkv, K, K]: what each query sees."""
    position = torch.arange(length)
    sees = torch.from_numpy(window.visible(position[:, None].numpy(), position.numpy()))
    first_left = window.num_sink_tokens + window.window_size
    mask = sees.expand(*scores.shape[:2], -1, -1).clone()
    for row in range(scores.shape[0]):
        for head in range(scores.shape[1]):
            left = set()
            drops = simulate_drops(scores[row, head].tolist(), window.num_retained_tokens, window.decision_interval)
            for query in range(first_left, length):
                event = query - first_left
                left.add(event)
                if event >= window.num_held:
                    left.remove(drops[event - window.num_held])
                for candidate in left:
                    mask[row, head, query, window.num_sink_tokens + candidate] = True
    return mask


def dense(q, k, v, mask):
    mask = mask.repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, -q.shape[2] :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("length", [1, 17, 29, 63, 64, 65, 100, 257, 400])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_equals_the_dense_mask(length, window):
    inputs, scores = draw(2, length, heads=4, kv_heads=2), draw_scores(window, 2, 2, length)
    actual = retained_attention(*inputs, window, order_of(window, scores), scale=SCALE)
    mask = dense_mask(window, scores, length)
    assert mask[:, :, -1].sum(-1).unique().tolist() == [min(length, window.lossless_budget)]
    assert_same(actual, dense(*inputs, mask), inputs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize("num_queries", [1, 5, 300])
def test_every_grouping_of_heads_and_a_documents_last_queries(heads, kv_heads, num_queries):
    window, length = WINDOWS[3], 333
    q, k, v = draw(1, length, heads, kv_heads)
    scores = draw_scores(window, 1, kv_heads, length)
    q = q[:, :, -num_queries:]
    actual = retained_attention(q, k, v, window, order_of(window, scores), scale=SCALE)
    assert_same(actual, dense(q, k, v, dense_mask(window, scores, length)), (q, k, v))


def test_many_blocks_are_computed_some_at_a_time(monkeypatch):
    """With few rows gathered at once, as a long document on a GPU does."""
    monkeypatch.setattr(module, "MAX_ROWS", 1000)
    monkeypatch.setattr(retained_blocks, "MIN_BLOCK", 16)
    window, length = WINDOWS[2], 300
    inputs, scores = draw(2, length, 4, 2), draw_scores(window, 2, 2, length)
    actual = retained_attention(*inputs, window, order_of(window, scores), scale=SCALE)
    assert_same(actual, dense(*inputs, dense_mask(window, scores, length)), inputs)


def test_all_scores_equal_is_a_wider_window():
    window, length = WindowSpec(4, 12, 8), 200
    inputs = draw(2, length, 4, 2)
    scores = torch.zeros(2, 2, length - 16)
    actual = retained_attention(*inputs, window, order_of(window, scores), scale=SCALE)
    position = torch.arange(length).numpy()
    wider = torch.from_numpy(WindowSpec(4, 20).visible(position[:, None], position)).expand(2, 2, -1, -1)
    assert_same(actual, dense(*inputs, wider), inputs)
