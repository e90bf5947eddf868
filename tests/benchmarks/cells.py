"""Each cell against transformers' chunked gated delta rule (its Qwen3-Next reference): B=1, H=16, D=128, fp32."""

import inspect

import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from pipeline.ahn.base import l2_normalise
from pipeline.ahn.gated_delta_net import chunk_gated_delta_rule
from tests.benchmarks.timing import compare, report, seconds

PEER = inspect.unwrap(torch_chunk_gated_delta_rule)  # where fla is installed, its kernel stands in front


def draw(length: int) -> list[torch.Tensor]:
    q, k, v = (torch.randn(1, length, 16, 128) for _ in range(3))
    g, beta = -torch.rand(1, length, 16) * 0.1, torch.rand(1, length, 16)
    return [x.requires_grad_() for x in (l2_normalise(q), l2_normalise(k), v, g, beta)]


def run(peer_lengths: tuple[int, ...] = (256, 1024, 4096, 8192), own_length: int = 16384) -> list[dict]:
    rows = []
    for length in peer_lengths:
        inputs = draw(length)
        weight = torch.randn(1, length, 16, 128)

        def ours(inputs=inputs, weight=weight):
            (chunk_gated_delta_rule(*inputs)[0] * weight).sum().backward()

        def peer(inputs=inputs, weight=weight):
            (PEER(*inputs)[0] * weight).sum().backward()

        mine, theirs, ratio = compare(ours, peer, repeats=1 if length > 2048 else 3)
        rows.append({"T": length, "ours_s": mine, "transformers_s": theirs, "ratio": ratio})
    inputs, weight = draw(own_length), torch.randn(1, own_length, 16, 128)
    longest = seconds(lambda: (chunk_gated_delta_rule(*inputs)[0] * weight).sum().backward())
    rows.append({"T": own_length, "ours_s": longest, "transformers_s": "", "ratio": longest / rows[-1]["ours_s"]})
    return report("gated delta rule, forward + backward (last row: ours against ours at half the length)", rows)
