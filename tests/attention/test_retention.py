"""The order in which candidates are dropped, against the rule candidate by candidate."""

import pytest
import torch

from pipeline.attention.retention import drop_events, drop_order
from tests.attention.retention_simulator import simulate_drops

SIZES = [(1, 1), (3, 1), (8, 1), (1, 4), (3, 4), (8, 4), (5, 7), (64, 16), (0, 1)]


@pytest.mark.parametrize(("num_retained", "interval"), SIZES)
@pytest.mark.parametrize("kind", ["different", "few values", "all equal", "rising", "falling"])
def test_drops_as_the_rule_says(num_retained, interval, kind):
    for num_candidates in (0, 1, 2, 3, 4, 7, 11, 12, 63, 64, 65, 100, 257):
        check_drops(num_retained, interval, num_candidates, kind)


def check_drops(num_retained, interval, num_candidates, kind):
    generator = torch.Generator().manual_seed(num_candidates)
    scores = torch.randn(2, 3, num_candidates, generator=generator)
    if kind == "few values":
        scores = scores.round()
    elif kind != "different":
        scores = {"all equal": 0, "rising": 1, "falling": -1}[kind] * torch.arange(num_candidates).expand(2, 3, -1)
    order = drop_order(scores, num_retained, interval)
    first_event = num_retained + interval - 1
    assert order.shape == (2, 3, max(0, num_candidates - first_event))
    for row in range(2):
        for head in range(3):
            expected = simulate_drops(scores[row, head].tolist(), num_retained, interval)
            assert order[row, head].tolist() == expected
    if kind == "all equal":  # the older leave: a window that is wider by as many tokens
        assert (order[..., 1:] > order[..., :-1]).all()
    events = drop_events(order, num_candidates, never=-1)
    dropped = events >= 0
    assert (dropped.sum(-1) == order.shape[-1]).all()
    assert (events[dropped] >= torch.arange(num_candidates).expand_as(events)[dropped]).all(), (
        "after it left the window"
    )


def test_what_is_retained_competes_again_with_what_comes_later():
    """A decision's outcome depends on what is retained and came since alone: what a cache can go on from."""
    scores = torch.randn(1, 400, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    num_retained, interval = 6, 5
    whole = drop_order(scores, num_retained, interval)[0]
    for seen in range(num_retained + 1, 390, 7):
        before = drop_order(scores[:, :seen], num_retained, interval)[0]
        assert before.tolist() == whole[: len(before)].tolist()
