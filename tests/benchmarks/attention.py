"""Sinks + window attention against SDPA with the dense mask, forward + backward: W=512, S=128, H=16, D=128, fp32."""

import torch
import torch.nn.functional as F

from pipeline.attention.sink_window import sink_window_attention
from pipeline.attention.window import WindowSpec
from tests.benchmarks.timing import compare, report

WINDOW = WindowSpec(num_sink_tokens=128, window_size=384)


def run(lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)) -> list[dict]:
    rows = []
    for length in lengths:
        q, k, v = (torch.randn(1, 16, length, 128, requires_grad=True) for _ in range(3))
        position = torch.arange(length).numpy()
        mask = torch.from_numpy(WINDOW.visible(position[:, None], position[None]))
        weight = torch.randn(1, 16, length, 128)

        def ours(q=q, k=k, v=v, weight=weight):
            (sink_window_attention(q, k, v, WINDOW, scale=128**-0.5).transpose(1, 2) * weight).sum().backward()

        def dense(q=q, k=k, v=v, weight=weight, mask=mask):
            (F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * weight).sum().backward()

        mine, theirs, ratio = compare(ours, dense, repeats=1 if length > 4096 else 3)
        rows.append({"T": length, "ours_s": mine, "dense_mask_s": theirs, "ratio": ratio})
    return report("sinks + window attention, forward + backward", rows)
