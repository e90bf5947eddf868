"""The rule of who sees what, against a token-by-token account."""

import numpy as np
import pytest

from pipeline.attention.window import Document, WindowSpec


@pytest.mark.parametrize(("sinks", "window", "length"), [(0, 1, 5), (0, 4, 9), (3, 5, 8), (3, 5, 9), (4, 12, 100)])
def test_every_token_is_seen_evicted_or_in_the_future_exactly_once(sinks, window, length):
    spec = WindowSpec(sinks, window)
    for t in range(length):
        visible = {j for j in range(length) if spec.visible(np.array(t), np.array(j))}
        compressed = set(range(sinks, t - window + 1))
        assert visible | compressed == set(range(t + 1))
        assert not visible & compressed
        assert len(compressed) == spec.num_evicted(t + 1)
        assert len(visible) <= spec.lossless_budget


def test_nothing_is_evicted_within_the_budget():
    spec = WindowSpec(4, 12)
    assert [spec.num_evicted(n) for n in (1, 16, 17, 20)] == [0, 0, 1, 4]
    assert Document(0, 10, 30, spec).num_evicted == 4
    assert Document(0, 10, 30, None).num_evicted == 0


@pytest.mark.parametrize(("sinks", "window"), [(-1, 4), (0, 0)])
def test_a_window_that_cannot_be_is_refused(sinks, window):
    with pytest.raises(ValueError, match=f"{sinks} and {window}"):
        WindowSpec(sinks, window)
