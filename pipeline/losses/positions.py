"""Which hidden states are supervised, and what each weighs. numpy only.

The hidden state at position t predicts token t + 1. It is supervised iff its query reads a memory, its target
lies in the same document, and the target is not label-masked: with t counted from 0 in its document of `len` tokens
and W the lossless budget, W <= t <= len - 2 and loss_mask[t + 1] = 1.
"""

import itertools
from typing import Literal

import numpy as np

Normalisation = Literal["tokens", "samples"]


def supervised_positions(cu_seqlens: np.ndarray, lossless_budget: int, loss_mask: np.ndarray | None) -> np.ndarray:
    """Supervised positions of one packed sample.

    Args:
        cu_seqlens: document bounds, int [n + 1], from 0 to T.
        lossless_budget: W = sinks + window.
        loss_mask: uint8 [T], 1 where a token is a target; None for all.

    Returns:
        Sorted indices into the sample, int64 [M].
    """
    bounds = cu_seqlens.astype(np.int64)
    in_document = np.concatenate(
        [np.arange(start + lossless_budget, end - 1) for start, end in itertools.pairwise(bounds)]
    ).astype(np.int64)
    return in_document if loss_mask is None else in_document[loss_mask[in_document + 1] == 1]


def position_weights(
    sample_of_position: np.ndarray, normalisation: Normalisation, num_positions: int, num_samples: int
) -> np.ndarray:
    """Weight of each supervised position of a micro-batch, so that all weights of a step sum to 1.

    Args:
        sample_of_position: index of each position's sample within the micro-batch, int [M].
        normalisation: `tokens` for the mean over positions, `samples` for the mean of per-sample means.
        num_positions: supervised positions of the step, over all ranks and micro-batches.
        num_samples: samples of the step that have at least one.

    Returns:
        float32 [M].
    """
    if normalisation == "tokens":
        return np.full(len(sample_of_position), 1.0 / max(num_positions, 1), np.float32)
    per_sample = np.bincount(sample_of_position, minlength=1)
    return (1.0 / (max(num_samples, 1) * per_sample[sample_of_position])).astype(np.float32)
