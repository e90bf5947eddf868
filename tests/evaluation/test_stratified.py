"""Intervals of means over tasks, against the cases that are known, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.stratified import draw_task, mean_intervals
from tests.drill import record

ANY = (-np.inf, np.inf)


def draw(*tasks, num_draws=10_000):
    return [draw_task(np.asarray(values, float), (0, i), num_draws) for i, values in enumerate(tasks)]


@pytest.mark.parametrize("num_examples", [3, 8, 40])
def test_of_one_task_it_is_the_plain_interval(num_examples):
    values = np.random.default_rng(0).gamma(2.0, 1.0, (num_examples, 1))
    (found,) = mean_intervals(draw(values), [ANY])
    sums = np.concatenate([values, np.ones_like(values)], 1)
    low, high = paired_interval(sums, lambda totals: totals[:, 0] / totals[:, 1])
    assert found == pytest.approx((low, high), abs=0.03 * (high - low))


def test_of_many_examples_it_is_welchs():
    """Tasks of uneven sizes and spreads count the same; scipy's interval is of a difference, so one task is negated."""
    rng = np.random.default_rng(1)
    few, many = rng.normal(0.0, 5.0, 10), rng.normal(1.0, 1.0, 200)
    few = 3.0 + np.concatenate([few, -few])  # Welch's is symmetric, so without skew
    (found,) = mean_intervals(draw(few[:, None], many[:, None]), [ANY])
    expected = stats.ttest_ind(few, -many, equal_var=False).confidence_interval()
    width = (expected.high - expected.low) / 2
    assert found == pytest.approx((expected.low / 2, expected.high / 2), abs=0.05 * width)


def test_values_of_an_example_are_drawn_together():
    rng = np.random.default_rng(2)
    shared = rng.uniform(0, 100, (2, 30))
    gains = rng.normal(1.0, 0.1, (2, 30))
    tasks = [np.stack([base, base + gain, gain], 1) for base, gain in zip(shared, gains, strict=True)]
    (low, high), *_, gain = mean_intervals(draw(*tasks), [ANY] * 3)
    assert high - low > 10 and gain[0] < 1 < gain[1] and gain[1] - gain[0] < 0.2
    first, second = (task.draws for task in draw(*tasks))
    np.testing.assert_allclose(first[:, 1] - first[:, 0], first[:, 2])
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.05  # tasks are drawn independently


def test_too_few_examples_of_any_task_or_equal_ones_have_none():
    assert mean_intervals(draw([[1.0]] * 2, [[1.0], [2.0], [3.0]]), [ANY]) == [None]
    assert mean_intervals(draw([[1.0]], [[1.0], [2.0], [3.0]]), [ANY]) == [None]
    equal, uneven = mean_intervals(draw([[1.0, 0.0]] * 3, [[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]]), [ANY, ANY])
    assert equal is None and uneven[0] < 3.5 / 3 < uneven[1]
    (cut,) = mean_intervals(draw([[0.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]), [(0.0, 1.0)])
    assert cut == (0.0, pytest.approx(min(1.0, cut[1]))) and cut[1] > 1 / 3


def test_shares_that_all_agree_have_the_interval_of_as_many_trials():
    zeros, ones = np.zeros((10, 1)), np.full((12, 1), 100.0)
    (of_one,) = mean_intervals(draw(zeros), [(0.0, 100.0)])
    sums = np.stack([zeros[:, 0], np.ones(10)], 1)
    assert of_one == paired_interval(sums, lambda totals: totals[:, 0] / totals[:, 1], limits=(0.0, 100.0))
    assert mean_intervals(draw(zeros, zeros), [(0.0, 100.0)]) == [(0.0, pytest.approx(100 * (1 - 0.025 ** (1 / 20))))]
    assert mean_intervals(draw(zeros, ones), [(0.0, 100.0)])[0][0] == pytest.approx(
        100 * stats.binomtest(10, 20).proportion_ci().low
    )


def test_few_examples_of_uneven_spread_have_few_degrees_of_freedom():
    """The wide task alone makes the interval: four examples have 3 degrees of freedom, not 6."""
    wide, narrow = [[-10.0], [-1.0], [1.0], [10.0]], [[0.0], [1e-6], [0.0], [1e-6]]
    (of_one,), (of_both,) = mean_intervals(draw(wide), [ANY]), mean_intervals(draw(wide, narrow), [ANY])
    assert of_both == pytest.approx([bound / 2 for bound in of_one], rel=1e-3)


def coverage(num_examples, num_tasks, trials):
    """Share of trials in which the interval holds the truth: scores like F1, of tasks that are not alike."""
    rng, hits = np.random.default_rng([num_examples, num_tasks]), 0
    shape = rng.uniform(0.3, 2.0, (num_tasks, 2))
    truth = (shape[:, 0] / shape.sum(1)).mean()
    for _ in range(trials):
        tasks = [rng.beta(a, b, (num_examples, 1)) for a, b in shape]
        ((low, high),) = mean_intervals(draw(*tasks, num_draws=1000), [(0.0, 1.0)])
        hits += low <= truth <= high
    return hits / trials


def test_covers_the_truth_about_as_often_as_it_says():
    assert 0.92 <= coverage(4, 5, trials=300) <= 0.985


@pytest.mark.drill
def test_coverage_by_the_numbers_of_tasks_and_examples():
    found = {
        f"{tasks} tasks": {
            f"{examples} examples": coverage(examples, tasks, trials=1000) for examples in (3, 5, 10, 50)
        }
        for tasks in (2, 5, 11)
    }
    record("average_interval_coverage", found)
    assert all(0.92 <= share <= 0.985 for of_tasks in found.values() for share in of_tasks.values())
