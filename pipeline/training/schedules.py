"""What changes with the step: the learning rate, and each sample's window. Pure functions, no random state.

A window is a function of (seed, global sample index, longest document, settings), so it is the same on every rank
that shares a sample and after every resume. Source: arXiv 2510.07318, section 3 (random window training).
"""

import hashlib
import math

from pipeline.attention.window import WindowSpec
from pipeline.config import WindowConfig

SMALLEST_BUDGET = 32
LARGEST_PUBLISHED_BUDGET = 8192


def learning_rate(step: int, max_steps: int, peak: float, warmup_ratio: float) -> float:
    """Linear warm-up to `peak` over the first `warmup_ratio` of the steps, then a cosine towards zero.

    Args:
        step: steps already taken; the first step (0) has rate peak / warm-up steps, not zero.
    """
    warmup_steps = math.ceil(warmup_ratio * max_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def window_candidates(longest_document: int, config: WindowConfig) -> list[tuple[int, list[int]]]:
    """Lossless budgets W that suit a sample whose longest document has L tokens, each with its sink counts S.

    By default W is a power of two from 32 with L/8 < W < L, up to 8,192 as published; where that leaves none
    because the sample is longer, the powers go on upwards. Configured budgets replace these and only need W < L.
    Sinks keep S <= W/2.
    """
    length = longest_document
    if config.budgets is not None:
        budgets = [w for w in config.budgets if w < length]
    else:
        powers = [2**e for e in range(SMALLEST_BUDGET.bit_length() - 1, max(length, 1).bit_length() + 1)]
        fitting = [w for w in powers if length < 8 * w and w < length]
        budgets = [w for w in fitting if w <= LARGEST_PUBLISHED_BUDGET] or fitting
    pairs = [(w, [s for s in config.sinks if 2 * s <= w]) for w in sorted(set(budgets))]
    return [(w, sinks) for w, sinks in pairs if sinks]


def draw_window(seed: int, global_sample_index: int, longest_document: int, config: WindowConfig) -> WindowSpec | None:
    """The window of one sample: W = S + R uniform over its candidates, then S uniform over those of W, then the number
    M of retained tokens uniform over those with which something is still evicted.

    Returns:
        None where no candidate is left: the sample then supervises nothing.
    """
    candidates = window_candidates(longest_document, config)
    if not candidates:
        return None
    digest = _draw(f"window:{seed}:{global_sample_index}")
    first, second = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    budget, sinks = candidates[first % len(candidates)]
    num_sink_tokens = sinks[second % len(sinks)]
    windows = [
        WindowSpec(num_sink_tokens, budget - num_sink_tokens, num_retained, config.interval(num_retained))
        for num_retained in sorted(config.retained)
    ]
    fitting = [window for window in windows if window.lossless_budget < longest_document]
    third = int.from_bytes(_draw(f"retained:{seed}:{global_sample_index}"), "little")
    return fitting[third % len(fitting)] if fitting else None


def _draw(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
