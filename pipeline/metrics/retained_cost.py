"""What the choice of retained tokens costs: FLOPs beside attention's own, and bytes of the cache.

Attention to retained tokens needs no term of its own: a query past the budget sees W = S + R + M + C - 1 keys, and the
formulas of accounting.py count W. What is added, with N = L - S - R candidates, of each layer with a memory:

    score     2 N D Nkv                        the linear score of the hidden state, D wide, one a key-value head
    received  H Nq (w^2 + 2 (L - w) w) / s     keys against every s-th query, w = S + R of them a query, no values
    order     3 N log2(N) Nkv                  two sorts and the rounds of a wavelet matrix, a comparison counted as one

with the stride s = max(1, R / 32) of the sampled queries. None of it has a gradient.
"""

import math

from pipeline.attention.window import WindowSpec
from pipeline.metrics.architecture import Architecture, attention_flops

POSITION_BYTES, DOOMED_BYTES = 8, 1
NUM_SCORE_PARTS = 2
"""Of a token's score in each key-value head: what is known when it comes, and the mass received so far."""


def choice_flops(a: Architecture, length: int, window: WindowSpec) -> int:
    """Of one layer, for one text of `length` tokens, also while it is within the budget, as a cache has it."""
    if not window.num_retained_tokens:
        return 0
    return score_flops(a, length, window) + received_flops(a, length, window) + order_operations(a, length, window)


def score_flops(a: Architecture, length: int, window: WindowSpec) -> int:
    """The dot products of the candidates' hidden states."""
    return 2 * _num_candidates(length, window) * a.hidden_size * a.num_key_value_heads


def received_flops(a: Architecture, length: int, window: WindowSpec) -> int:
    """Half of the attention to sinks and window, scores without values, of the sampled queries."""
    reach = window.num_sink_tokens + window.window_size
    return attention_flops(a, length, reach) // (2 * window.sampling_stride)


def order_operations(a: Architecture, length: int, window: WindowSpec) -> int:
    """Comparisons and moves of indices, which are no multiplications, so that nothing is left out."""
    candidates = _num_candidates(length, window)
    return 3 * candidates * math.ceil(math.log2(max(2, candidates))) * a.num_key_value_heads


def facts_bytes(a: Architecture, num_tokens: int, float_bytes: int = 4) -> int:
    """What one layer's cache knows of so many tokens beside keys, values and gates: position, score, received mass, and
    whether they wait to be dropped."""
    return num_tokens * a.num_key_value_heads * (POSITION_BYTES + DOOMED_BYTES + NUM_SCORE_PARTS * float_bytes)


def sampled_bytes(a: Architecture, length: int, window: WindowSpec, bytes_per_element: int) -> int:
    """The sampled queries, which one layer's cache keeps while no token was dropped, so that it can be cropped."""
    if window.num_evicted(length):
        return 0
    return -(-length // window.sampling_stride) * a.num_attention_heads * a.head_dim * bytes_per_element


def _num_candidates(length: int, window: WindowSpec) -> int:
    return max(0, length - window.num_sink_tokens - window.window_size)
