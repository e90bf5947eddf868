"""The interval against cases that can be worked out by hand, and its coverage."""

import numpy as np
import pytest
import scipy.stats

from pipeline.evaluation.bootstrap import paired_interval


def mean_difference(totals: np.ndarray) -> np.ndarray:
    return (totals[:, 1] - totals[:, 2]) / totals[:, 0]


def test_equal_documents_give_a_point() -> None:
    sums = np.tile([10.0, 5.0, 3.0], (7, 1))
    assert paired_interval(sums, mean_difference) == pytest.approx((0.2, 0.2))


def test_pairing_removes_what_the_documents_share() -> None:
    rng = np.random.default_rng(1)
    shared = rng.uniform(1, 100, size=40)
    sums = np.stack([np.ones(40), shared + 0.1, shared], axis=1)
    assert paired_interval(sums, mean_difference) == pytest.approx((0.1, 0.1))


def test_two_documents_have_three_equally_spaced_outcomes() -> None:
    # Draws: both the first (1/4), one of each (1/2), both the second (1/4); both tails exceed 2.5 %.
    sums = np.array([[1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    assert paired_interval(sums, mean_difference) == pytest.approx((0.0, 1.0))


def test_documents_weigh_by_their_tokens() -> None:
    # One long document at 1.0 among short ones at 0.0; drawn k times it gives 1000 k / (1000 k + 50 - k).
    sums = np.array([[1000.0, 1000.0, 0.0]] + [[1.0, 0.0, 0.0]] * 49)
    low, high = paired_interval(sums, mean_difference)
    assert low == 0.0
    assert high == pytest.approx(3000 / 3047, abs=1e-6)


def test_the_seed_decides() -> None:
    sums = np.random.default_rng(0).uniform(1, 2, size=(20, 3))
    assert paired_interval(sums, mean_difference) == paired_interval(sums, mean_difference)
    assert paired_interval(sums, mean_difference, seed=1) != paired_interval(sums, mean_difference)


def test_one_document_has_no_interval() -> None:
    assert paired_interval(np.ones((1, 3)), mean_difference) is None


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits, trials = np.random.default_rng(5), 0, 200
    for trial in range(trials):
        sums = np.stack([np.ones(40), rng.normal(0.3, 1.0, size=40), np.zeros(40)], axis=1)
        low, high = paired_interval(sums, mean_difference, num_draws=500, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / trials <= 0.985


@pytest.mark.parametrize("num_documents", [5, 22, 200])
def test_equals_scipys_paired_percentile_bootstrap(num_documents) -> None:
    """The same statistic on its own draws: bounds agree within 3 % of the interval's width."""
    rng = np.random.default_rng(num_documents)
    tokens = rng.integers(50, 2000, num_documents).astype(float)
    window = tokens * rng.gamma(2.0, 0.15, num_documents)
    sums = np.stack([tokens, window, window * rng.uniform(0.6, 1.1, num_documents)], axis=1)

    def recovered(kl_window: np.ndarray, kl_ahn: np.ndarray, axis: int) -> np.ndarray:
        return 1 - kl_ahn.sum(axis) / kl_window.sum(axis)

    ours = paired_interval(sums, lambda totals: 1 - totals[:, 2] / totals[:, 1], num_draws=40_000)
    draws = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 40_000, "batch": 2_000}
    theirs = scipy.stats.bootstrap((sums[:, 1], sums[:, 2]), recovered, rng=rng, **draws).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.03 * (theirs.high - theirs.low))
