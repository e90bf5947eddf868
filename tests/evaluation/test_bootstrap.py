"""The interval against cases that can be worked out by hand, and its coverage."""

import numpy as np
import pytest
import scipy.stats

from pipeline.evaluation.bootstrap import draw_quantiles, paired_interval
from tests.drill import record

QUANTILES = {"level": 0.95, "num_draws": 1000, "seed": 0}


def mean_difference(totals: np.ndarray) -> np.ndarray:
    return (totals[:, 1] - totals[:, 2]) / totals[:, 0]


def mean(totals: np.ndarray) -> np.ndarray:
    return totals[:, 1] / totals[:, 0]


def recovered(totals: np.ndarray) -> np.ndarray:
    return 1 - totals[:, 2] / totals[:, 1]


def draw_means(num_documents: int, rng: np.random.Generator) -> np.ndarray:
    """Of which the mean is 1."""
    return np.stack([np.ones(num_documents), rng.normal(1.0, 1.0, num_documents)], axis=1)


def draw_losses(num_documents: int, rng: np.random.Generator) -> np.ndarray:
    """Skewed, of documents of uneven lengths, of which 0.15 is recovered."""
    tokens = rng.integers(50, 2000, num_documents).astype(float)
    window = tokens * rng.gamma(2.0, 0.15, num_documents)
    return np.stack([tokens, window, window * rng.uniform(0.6, 1.1, num_documents)], axis=1)


def coverage(draw, statistic, truth: float, num_documents: int, trials: int) -> tuple[float, float]:
    """Shares of trials in which the quantiles of the draws, and the interval, hold the truth."""
    rng, hits = np.random.default_rng(num_documents), np.zeros(2)
    for _ in range(trials):
        sums = draw(num_documents, rng)
        bounds = draw_quantiles(sums, statistic, **QUANTILES), paired_interval(sums, statistic, **QUANTILES)
        hits += [low <= truth <= high for low, high in bounds]
    return tuple((hits / trials).tolist())


def test_equal_documents_have_no_interval_unless_their_values_have_limits() -> None:
    sums = np.tile([10.0, 5.0, 3.0], (7, 1))
    assert paired_interval(sums, mean_difference) is None
    assert paired_interval(sums, mean_difference, limits=(-np.inf, 1.0)) is None


@pytest.mark.parametrize(("value", "documents", "expected"), [
    (0.0, 48, (0.0, 1 - 0.025 ** (1 / 48))),  # 0 of 48: up to 7.4 %
    (1.0, 48, (0.025 ** (1 / 48), 1.0)),
    (0.0, 3, (0.0, 1 - 0.025 ** (1 / 3))),
    (0.5, 48, tuple(scipy.stats.binomtest(24, 48).proportion_ci())),
])  # fmt: skip
def test_a_share_that_is_the_same_for_all_has_the_interval_of_as_many_trials(value, documents, expected) -> None:
    sums = np.tile([2.0, 2 * value], (documents, 1))
    assert paired_interval(sums, mean, limits=(0.0, 1.0)) == pytest.approx(expected)
    percent = paired_interval(sums, lambda totals: 100 * mean(totals), limits=(0.0, 100.0))
    assert percent == pytest.approx([100 * bound for bound in expected])


def test_pairing_removes_what_the_documents_share() -> None:
    rng = np.random.default_rng(1)
    shared = rng.uniform(1, 100, size=40)
    sums = np.stack([np.ones(40), shared + rng.normal(0.1, 1e-3, size=40), shared], axis=1)
    low, high = paired_interval(sums, mean_difference)
    assert low < 0.1 < high and high - low < 1e-3


def test_three_documents_reach_past_the_least_and_the_greatest() -> None:
    # 1 draw in 27 is thrice the same document, so the quantiles are 0.1 and 1; t of 2 degrees of freedom is 4.3027.
    sums = np.array([[1.0, 1.0, 0.0], [1.0, 0.4, 0.0], [1.0, 0.1, 0.0]])
    assert draw_quantiles(sums, mean_difference, **QUANTILES) == pytest.approx((0.1, 1.0))
    stretch = 4.302653 / 1.959964 * 1.5**0.5
    assert paired_interval(sums, mean_difference) == pytest.approx((0.5 - 0.4 * stretch, 0.5 + 0.5 * stretch))
    assert paired_interval(sums, mean_difference, limits=(0.0, 1.0)) == (0.0, 1.0)


def test_documents_weigh_by_their_tokens() -> None:
    # One long document at 1.0 among short ones at 0.0; drawn k times it gives 1000 k / (1000 k + 50 - k).
    sums = np.array([[1000.0, 1000.0, 0.0]] + [[1.0, 0.0, 0.0]] * 49)
    low, high = draw_quantiles(sums, mean_difference, level=0.95, num_draws=10_000, seed=0)
    assert low == 0.0
    assert high == pytest.approx(3000 / 3047, abs=1e-6)


def test_the_seed_decides() -> None:
    sums = np.random.default_rng(0).uniform(1, 2, size=(20, 3))
    assert paired_interval(sums, mean_difference) == paired_interval(sums, mean_difference)
    assert paired_interval(sums, mean_difference, seed=1) != paired_interval(sums, mean_difference)


def test_two_documents_or_an_undefined_draw_have_no_interval() -> None:
    sums = np.array([[1.0, 1.0, 0.0], [1.0, 0.4, 0.0], [1.0, 0.1, 0.0]])
    assert paired_interval(sums[:2], mean_difference, limits=(0.0, 1.0)) is None
    assert paired_interval(sums, lambda totals: np.where(totals[:, 1] > 2.9, np.nan, totals[:, 1])) is None


@pytest.mark.parametrize("num_documents", [3, 6])
def test_covers_the_truth_about_as_often_as_it_says(num_documents) -> None:
    quantiles, interval = coverage(draw_means, mean, 1.0, num_documents, trials=400)
    assert 0.92 <= interval <= 0.985 and interval > quantiles + 0.05


@pytest.mark.drill
def test_coverage_by_the_number_of_documents() -> None:
    cases = {"mean": (draw_means, mean, 1.0), "recovered": (draw_losses, recovered, 0.15)}
    found = {
        name: {number: coverage(*case, number, trials=2000) for number in (3, 4, 6, 8, 16, 32)}
        for name, case in cases.items()
    }
    record("interval_coverage", {
        name: {number: dict(zip(("quantiles", "interval"), shares, strict=True)) for number, shares in of_case.items()}
        for name, of_case in found.items()
    })  # fmt: skip
    for of_case in found.values():
        for quantiles, interval in of_case.values():
            assert 0.88 <= interval <= 0.98 and interval > quantiles
    assert min(interval for _, interval in found["mean"].values()) >= 0.92


@pytest.mark.parametrize("num_documents", [5, 22, 200])
def test_equals_scipys_paired_percentile_bootstrap(num_documents) -> None:
    """The same statistic on its own draws: quantiles agree within 3 % of their distance."""
    rng = np.random.default_rng(num_documents)
    sums = draw_losses(num_documents, rng)

    def share(kl_window: np.ndarray, kl_ahn: np.ndarray, axis: int) -> np.ndarray:
        return 1 - kl_ahn.sum(axis) / kl_window.sum(axis)

    ours = draw_quantiles(sums, recovered, level=0.95, num_draws=40_000, seed=0)
    draws = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 40_000, "batch": 2_000}
    theirs = scipy.stats.bootstrap((sums[:, 1], sums[:, 2]), share, rng=rng, **draws).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.03 * (theirs.high - theirs.low))
