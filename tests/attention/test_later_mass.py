"""The mass that later queries give, against whole rows of attention."""

import pytest
import torch

from pipeline.attention import later_mass as module
from pipeline.attention.later_mass import later_mass
from tests.attention.test_sink_window import SCALE, draw


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 200])
@pytest.mark.parametrize("at_once", [2**25, 3000])
def test_equals_whole_rows_of_attention_by_distance(length, at_once, monkeypatch):
    monkeypatch.setattr(module, "MAX_ELEMENTS", at_once)
    q, k, _ = (x.detach() for x in draw(2, length, heads=4, kv_heads=2))
    found = later_mass(q, k, scale=SCALE, num_queries=64)
    rows = [(i + 1) * length // min(64, length) - 1 for i in range(min(64, length))]
    assert rows[-1] == length - 1 and len(set(rows)) == min(64, length)
    logits = q @ k.repeat_interleave(2, 1).transpose(2, 3) * SCALE
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    weights = logits.masked_fill(~causal, -torch.inf).softmax(-1).unflatten(1, (2, 2)).mean(2)
    for token in range(0, length, 7):
        for number in range(found.sums.shape[-1]):
            near = [t for t in rows if 2**number <= t - token < 2 ** (number + 1)]
            assert found.counts[token, number] == len(near)
            mean = sum(t - token for t in near) / max(1, len(near))
            assert found.distances[token, number].item() == pytest.approx(mean)
            close(found.sums[:, :, token, number], weights[:, :, near, token].sum(-1))
    for window in (1, 2, 3, 16, 17):
        beyond = found.beyond(window)
        sums, counts = beyond.sums.sum(-1), beyond.counts.sum(-1)
        assert beyond.distances.shape == beyond.counts.shape
        least = min(d for d in (1, 2, 4, 8, 16, 32) if d >= window)
        assert counts[0] == sum(t >= least for t in rows)
        expected = sum((weights[:, :, t, 0] for t in rows if t >= least), torch.zeros(2, 2, dtype=torch.float64))
        close(sums[:, :, 0], expected)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to what float32 sums over up to 64 queries lose."""
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
