"""The mass that tokens receive in the window, against one dense softmax."""

import pytest
import torch

from pipeline.attention.received import received_mass
from pipeline.attention.window import WindowSpec
from tests.attention.test_sink_window import SCALE, draw

WINDOWS = [WindowSpec(0, 1), WindowSpec(0, 7), WindowSpec(4, 12, 3), WindowSpec(8, 70), WindowSpec(3, 150)]


def dense(q, k, window):
    """[B, Hkv, K] from whole rows of attention."""
    num_tokens, group = k.shape[2], q.shape[1] // k.shape[1]
    query, key = torch.arange(num_tokens - q.shape[2], num_tokens)[:, None], torch.arange(num_tokens)
    logits = q @ k.repeat_interleave(group, 1).transpose(2, 3) * SCALE
    sees = torch.from_numpy(window.visible(query.numpy(), key.numpy()))
    given = logits.masked_fill(~sees, -torch.inf).softmax(-1)
    counts = (query % window.sampling_stride == 0) & (key < query) & (query - key < window.window_size)
    given = given * (counts & (key >= window.num_sink_tokens))
    return given.sum(2).unflatten(1, (-1, group)).mean(2)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 333])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_equals_whole_rows_of_attention_and_adds_up_over_queries(window, length):
    q, k, _ = (x.detach() for x in draw(2, length, heads=6, kv_heads=2))
    whole = received_mass(q, k, window, scale=SCALE)
    torch.testing.assert_close(whole, dense(q, k, window), rtol=0, atol=1e-12)
    for cut in {1, length // 3, length - 1} - {0, length}:
        first = torch.nn.functional.pad(
            received_mass(q[:, :, :cut], k[:, :, :cut], window, scale=SCALE), (0, length - cut)
        )
        last = received_mass(q[:, :, cut:], k, window, scale=SCALE)
        torch.testing.assert_close(first + last, whole, rtol=0, atol=1e-12)
    assert whole.any() or window.window_size == 1 or length < 3
