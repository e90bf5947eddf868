"""Model FLOPs of one training step, for its utilisation of the hardware (MFU).

By the formulas of pipeline/metrics/accounting.py, for the documents that a step really had: the student's tokens past
the lossless budget, forward and backward, and the teacher's pass without gradients, or the pass over the budgets that
stands in its place. The base is frozen, so its matrices cost one more pass backward (towards their inputs), attention
and the memory two, and the choice of retained tokens none. What activation checkpointing computes again does not count.
"""

import re
from collections.abc import Sequence

from pipeline.attention.window import Document
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import Architecture, attention_flops

# Dense bfloat16, TFLOPS, by words of the device's name; the first that fit. Sources: the makers' data sheets.
PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "H800": 989.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 150.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
    "RTX 6000 Ada": 364.0,
    "RTX A6000": 155.0,
    "MI300X": 1307.0,
    "MI325X": 1307.0,
    "MI250X": 383.0,
}


def find_peak_tflops(device_name: str) -> float | None:
    """What the device can do at most in bfloat16; None where that is not known."""
    return next((peak for words, peak in PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", device_name)), None)


def student_flops(
    a: Architecture, cell: str, documents: Sequence[Document], num_positions: int, *, whole: bool = False
) -> int:
    """Forward and backward of the student.

    Args:
        documents: each with its window.
        num_positions: that are supervised; the head is computed for no others.
        whole: the student computes the documents from their first tokens on, not only past the budget.
    """
    total = 0
    for d in documents:
        budget = 0 if whole else min(d.window.lossless_budget, d.length)
        account = compute_account(a, cell, d.length, d.window)
        before = compute_account(a, cell, budget, d.window).mixer_flops.full if budget else 0
        matrices = _matrix_flops(a, d.length - budget)
        attention = account.mixer_flops.ahn - before - account.choice_flops - _projection_flops(a, d.length - budget)
        total += 2 * matrices + 3 * attention + (account.choice_flops if d.num_evicted else 0)
    return total + 2 * head_flops(a, num_positions)


def teacher_flops(a: Architecture, lengths: Sequence[int]) -> int:
    """Forward with full attention over rows of these lengths, without the head."""
    windows = [None] * a.num_memory_layers + list(a.sliding_windows)
    attention = sum(attention_flops(a, n, window or n) for n in lengths for window in windows)
    return _matrix_flops(a, sum(lengths)) + attention


def head_flops(a: Architecture, num_positions: int) -> int:
    """One pass of the output matrix."""
    return 2 * num_positions * a.hidden_size * a.vocab_size


def _matrix_flops(a: Architecture, num_tokens: int) -> int:
    mlp = 6 * num_tokens * a.hidden_size * a.intermediate_size * a.num_hidden_layers
    return mlp + _projection_flops(a, num_tokens)


def _projection_flops(a: Architecture, num_tokens: int) -> int:
    heads = a.num_attention_heads + a.num_key_value_heads
    return 4 * num_tokens * a.hidden_size * a.head_dim * heads * a.num_hidden_layers
