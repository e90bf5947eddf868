"""Gradients of evicted tokens beside those without any memory.

Without memories a query still reaches tokens that left its window, through the windows of the layers below, and those
gradients depend on the token alike: a rare word's are large under any attention. What tells of the memory is the ratio

    r_j = log(g_j / h_j),    r_j - mean of r over the neighbourhood of j

of the norms with memories g and without h, as logarithms, since h falls off by orders of magnitude where the windows
end. Tokens that no window reaches (h_j = 0) have none.
"""

from collections.abc import Sequence

import numpy as np


def relative_log_ratios(norms: Sequence[float], without_memory: Sequence[float], neighbours: int) -> np.ndarray:
    """r_j less its mean over the token itself and those `neighbours` on either side that have one; float64 [E].

    NaN where there is none: a norm is 0 with memories or without.
    """
    ratios = np.full(len(norms), np.nan)
    with_memory, without = np.asarray(norms, dtype=np.float64), np.asarray(without_memory, dtype=np.float64)
    defined = (with_memory > 0) & (without > 0)
    ratios[defined] = np.log(with_memory[defined]) - np.log(without[defined])
    sums = np.concatenate([[0.0], np.nancumsum(ratios)])
    counts = np.concatenate([[0], np.cumsum(defined)])
    index = np.arange(len(ratios))
    low, high = np.maximum(index - neighbours, 0), np.minimum(index + neighbours + 1, len(ratios))
    return ratios - (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
