"""Paired bootstrap over documents, for ratios of sums.

A document is the unit that is drawn again: tokens of one document are not independent of each other, and
every variant was measured on the same tokens, so a draw takes a document with all its sums (paired). Ratios
are formed after summing, so long documents count by their tokens.
"""

from collections.abc import Callable

import numpy as np

DRAWS_AT_A_TIME = 1000


def paired_interval(
    sums: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    level: float = 0.95,
    num_draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of `statistic` when documents are drawn again with replacement.

    Args:
        sums: float64 [num_documents, num_columns], one row of per-document totals (tokens, KL, ...).
        statistic: maps totals [num_draws, num_columns] to values [num_draws].
        level: coverage.
        num_draws: bootstrap draws.
        seed: of the draws; equal input and seed give an equal interval.

    Returns:
        (low, high), or None with fewer than two documents: one says nothing about the spread between them.
    """
    num_documents = len(sums)
    if num_documents < 2:
        return None
    rng = np.random.default_rng(seed)
    uniform = np.full(num_documents, 1 / num_documents)
    values = []
    for start in range(0, num_draws, DRAWS_AT_A_TIME):
        counts = rng.multinomial(num_documents, uniform, size=min(DRAWS_AT_A_TIME, num_draws - start))
        values.append(statistic(counts @ sums))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)
