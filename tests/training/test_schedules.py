import itertools
import math
from collections import Counter

import pytest

from pipeline.config import WindowConfig
from pipeline.training.schedules import draw_window, learning_rate, window_candidates

DEFAULT = WindowConfig()


def budgets(length: int, config: WindowConfig = DEFAULT) -> list[int]:
    return [w for w, _ in window_candidates(length, config)]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (32, []),
        (33, [32]),
        (64, [32]),
        (65, [32, 64]),
        (1024, [256, 512]),
        (1025, [256, 512, 1024]),
        (24_576, [4096, 8192]),
        (65_535, [8192]),
        (65_536, [16_384, 32_768]),
        (131_072, [32_768, 65_536]),
    ],
)
def test_default_budgets_lie_between_an_eighth_and_the_whole(length, expected):
    assert budgets(length) == expected


def test_configured_budgets_only_need_to_be_shorter_than_the_document():
    config = WindowConfig(budgets=[128, 256, 512], sinks=[0, 32, 64])
    assert budgets(10_000, config) == [128, 256, 512]
    assert budgets(256, config) == [128]
    assert budgets(128, config) == []


def test_sinks_take_at_most_half_of_the_budget():
    assert dict(window_candidates(1024, DEFAULT)) == {256: [0, 32, 64, 128], 512: [0, 32, 64, 128]}
    only_large = WindowConfig(sinks=[256])
    assert dict(window_candidates(1024, only_large)) == {512: [256]}


def test_a_draw_depends_on_seed_and_sample_alone():
    drawn = [draw_window(3, i, 1024, DEFAULT) for i in range(50)]
    assert drawn == [draw_window(3, i, 1024, DEFAULT) for i in range(50)]
    assert drawn != [draw_window(4, i, 1024, DEFAULT) for i in range(50)]
    # A change of these would change what every existing run trains on.
    assert [(w.num_sink_tokens, w.lossless_budget) for w in drawn[:6]] == [
        (0, 512),
        (128, 512),
        (64, 512),
        (128, 512),
        (0, 256),
        (64, 512),
    ]


def test_draws_are_uniform_over_budgets_and_over_sinks_of_a_budget():
    count = 8000
    drawn = Counter(
        (w.lossless_budget, w.num_sink_tokens) for i in range(count) if (w := draw_window(0, i, 1024, DEFAULT))
    )
    expected = {(w, s): 1 / 2 / 4 for w in (256, 512) for s in (0, 32, 64, 128)}
    assert drawn.keys() == expected.keys() and drawn.total() == count
    for pair, share in expected.items():
        assert drawn[pair] / count == pytest.approx(share, abs=5 * math.sqrt(share / count))


def test_retained_tokens_are_drawn_last_and_only_where_something_is_still_evicted():
    plain = WindowConfig(budgets=[32, 64], sinks=[0, 4])
    config = WindowConfig(budgets=[32, 64], sinks=[0, 4], retained=[0, 8, 40], decision_interval=4)
    counts = Counter()
    for index in range(600):
        before, drawn = draw_window(3, index, 100, plain), draw_window(3, index, 100, config)
        assert drawn.without_retained == before  # S and R as they were
        assert drawn.lossless_budget < 100
        assert drawn.decision_interval == (4 if drawn.num_retained_tokens else 1)
        counts[drawn.num_sink_tokens + drawn.window_size, drawn.num_retained_tokens] += 1
        assert draw_window(3, index, 100, WindowConfig(budgets=[32, 64], sinks=[0, 4], retained=[0])) == before
    assert set(counts) == {(32, 0), (32, 8), (32, 40), (64, 0), (64, 8)}  # 64 + 40 + 3 tokens are more than there are
    assert all(abs(counts[32, m] - 100) < 40 for m in (0, 8, 40)) and abs(counts[64, 8] - 150) < 40
    assert draw_window(3, 0, 50, WindowConfig(budgets=[48], sinks=[0], retained=[2])) is None


def test_nothing_is_drawn_for_a_document_without_candidates():
    assert draw_window(0, 0, 32, DEFAULT) is None


def test_learning_rate_warms_up_linearly_then_follows_a_cosine():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001 and all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_learning_rate_without_warm_up_starts_at_its_peak():
    assert learning_rate(0, 10, 2.0, 0.0) == 2.0
