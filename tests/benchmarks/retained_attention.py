"""Attention to 64 retained tokens, forward + backward, against the window alone, a window wider by 64 and SDPA with the
dense mask, and the choice of the tokens: S = 128, R = 384, 16 query and 4 key-value heads of 128, fp32."""

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.received import received_mass
from pipeline.attention.retained_attention import drop_positions, retained_attention
from pipeline.attention.retention import drop_order
from pipeline.attention.sink_window import sink_window_attention
from pipeline.attention.window import WindowSpec
from tests.benchmarks.timing import Run, report, seconds

WINDOW = WindowSpec(num_sink_tokens=128, window_size=384, num_retained_tokens=64)
WIDER = WindowSpec(WINDOW.num_sink_tokens, WINDOW.window_size + WINDOW.num_held)
HEADS, KV_HEADS, DIM = 16, 4, 128
SCALE = DIM**-0.5


def dense_mask(order: Tensor, length: int) -> Tensor:
    """[1, Hq, T, T]: what each query sees."""
    drops = drop_positions(order, WINDOW, length, never=length)
    position = torch.arange(length)
    mask = (position <= position[:, None]) & (position[:, None] < drops[:, :, None])
    return mask.repeat_interleave(HEADS // KV_HEADS, 1)


def make_runs(length: int) -> dict[str, Run]:
    """What is timed, by name."""
    q, k, v = (torch.randn(1, heads, length, DIM, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS))
    weight = torch.randn(1, length, HEADS, DIM)
    scores = torch.randn(1, KV_HEADS, length - WINDOW.num_sink_tokens - WINDOW.window_size)
    order = drop_order(scores, WINDOW.num_retained_tokens, WINDOW.decision_interval)
    mask = dense_mask(order, length)

    def choose() -> Tensor:
        received_mass(q.detach(), k.detach(), WINDOW, scale=SCALE)
        return drop_order(scores, WINDOW.num_retained_tokens, WINDOW.decision_interval)

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True).transpose(1, 2)

    forwards = {
        "retained": lambda: retained_attention(q, k, v, WINDOW, order, scale=SCALE),
        "window": lambda: sink_window_attention(q, k, v, WINDOW.without_retained, scale=SCALE),
        "wider": lambda: sink_window_attention(q, k, v, WIDER, scale=SCALE),
        "dense_mask": dense,
    }
    assert torch.allclose(forwards["retained"](), dense(), atol=1e-4)
    return {"choice": choose} | {
        name: (lambda forward=forward: (forward() * weight).sum().backward()) for name, forward in forwards.items()
    }


def run(lengths: tuple[int, ...] = (1024, 2048, 4096), repeats: int = 3) -> list[dict]:
    rows = []
    for length in lengths:
        runs = make_runs(length)
        for warm_up in runs.values():
            warm_up()
        times = {name: [] for name in runs}
        for _ in range(repeats):  # in turn: ratios hold while the machine's speed drifts
            for name, timed in runs.items():
                times[name].append(seconds(timed))
        row = {"T": length} | {f"{name}_s": statistics.median(values) for name, values in times.items()}
        for name in ("window", "wider", "dense_mask"):
            pairs = zip(times[name], times["retained"], strict=True)
            row[f"{name} / retained"] = statistics.median(other / ours for other, ours in pairs)
        rows.append(row)
    return report("attention to 64 retained tokens, forward + backward (choice: forward alone, once)", rows)
