"""Bootstrap of a mean over tasks, each of which counts the same however many examples it has.

Examples are drawn again within each task, and with all their values, so that two variants stay paired. As in
bootstrap.py quantiles of the draws are stretched for few examples: with s_k^2 / n_k the variance of the mean of task k,
the draws have (n_k - 1) / n_k of it, and their sum over tasks has about

    (sum of s_k^2 / n_k)^2 / sum of (s_k^2 / n_k)^2 / (n_k - 1)

degrees of freedom (Satterthwaite, Biometrics Bulletin 2 (1946)). Of one task that is bootstrap.py's interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.bootstrap import LEAST_DOCUMENTS, LEAST_SPREAD, interval_of_equals, stretched

NUM_DRAWS = 10_000
Interval = tuple[float, float]


@dataclass(frozen=True)
class TaskDraws:
    """C values of n examples: `mean` and its `variance`, float64 [C], and `draws` of the mean, float64 [D, C]."""

    num_examples: int
    mean: np.ndarray
    variance: np.ndarray
    draws: np.ndarray


def draw_task(values: np.ndarray, seed: tuple[int, ...], num_draws: int = NUM_DRAWS) -> TaskDraws:
    """Draws the examples of one task again, with replacement.

    Args:
        values: float64 [n >= 1, C].
        seed: another one for each task, whose draws are to be independent.
    """
    num_examples = len(values)
    counts = np.random.default_rng(seed).multinomial(num_examples, np.full(num_examples, 1 / num_examples), num_draws)
    variance = values.var(0, ddof=1) / num_examples if num_examples > 1 else np.full(values.shape[1], np.nan)
    return TaskDraws(num_examples, values.mean(0), variance, counts @ values / num_examples)


def mean_intervals(
    tasks: Sequence[TaskDraws], limits: Sequence[Interval], level: float = 0.95
) -> list[Interval | None]:
    """For each column the interval of the mean over `tasks` of their means, stretched for few examples.

    Args:
        tasks: at least one, all with the same C columns and number of draws.
        limits: of each column's values; no bound goes past them.
        level: coverage.

    Returns:
        None for all where a task has fewer than LEAST_DOCUMENTS examples. For a column in which the draws agree None
        too, unless its limits are finite: then Clopper-Pearson's of as many trials a task as the smallest has.
    """
    if min(task.num_examples for task in tasks) < LEAST_DOCUMENTS:
        return [None] * len(limits)
    sizes = np.array([task.num_examples for task in tasks], float)[:, None]
    variances = np.stack([task.variance for task in tasks])
    means, draws = (np.mean([getattr(task, name) for task in tasks], 0) for name in ("mean", "draws"))
    upper = (1 + level) / 2
    lows, highs = np.quantile(draws, [1 - upper, upper], axis=0)
    found: list[Interval | None] = []
    for mean, low, high, of_tasks, (least, greatest) in zip(means, lows, highs, variances.T, limits, strict=True):
        if high - low <= LEAST_SPREAD * max(abs(low), abs(high)):
            trials = len(tasks) * int(sizes.min())
            has_limits = np.isfinite([least, greatest]).all()
            found.append(interval_of_equals(float(mean), trials, (least, greatest), level) if has_limits else None)
            continue
        of_mean = of_tasks[:, None]
        freedom = of_mean.sum() ** 2 / (of_mean**2 / (sizes - 1)).sum()
        share = (of_mean * (sizes - 1) / sizes).sum() / of_mean.sum()
        found.append(stretched(float(mean), (low, high), (least, greatest), level, freedom, share))
    return found
