"""Each cell against transformers' chunked gated delta rule (its Qwen3-Next reference; for DeltaNet and Mamba2 the same
peer as a proxy) and against the bare matrix products: B=1, H=16, D=128, fp32."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from pipeline.ahn.base import l2_normalise
from pipeline.ahn.chunk_rule import CHUNK_SIZE
from pipeline.ahn.delta_net import chunk_delta_rule
from pipeline.ahn.gated_delta_net import chunk_gated_delta_rule
from pipeline.ahn.mamba2 import chunk_ssd
from tests.benchmarks.timing import compare, report, seconds

PEER = inspect.unwrap(torch_chunk_gated_delta_rule)  # where fla is installed, its kernel stands in front
HEADS, DIM = 16, 128
CELLS = {"gated_delta_net": chunk_gated_delta_rule, "delta_net": chunk_delta_rule, "mamba2": chunk_ssd}
PRODUCTS = {"gated_delta_net": (11, 17), "delta_net": (11, 17), "mamba2": (7, 7)}  # a token: D x D, C x D; both passes


def draw(length: int, cell: str) -> list[Tensor]:
    q, k, v = (torch.randn(1, length, HEADS, DIM) for _ in range(3))
    gates = [-torch.rand(1, length, HEADS) * 0.1, torch.rand(1, length, HEADS)][cell == "delta_net" :]
    return [x.requires_grad_() for x in (l2_normalise(q), l2_normalise(k), v, *gates)]


def both_passes(rule: Callable, inputs: list[Tensor]) -> Callable[[], object]:
    weight = torch.randn(inputs[2].shape)
    return lambda: torch.autograd.grad(rule(*inputs)[0], inputs, weight)


def matmul_seconds(length: int, cell: str) -> float:
    """The cell's own matrix products alone, at the speed of batched products of its shape."""
    a, b = torch.randn(HEADS, CHUNK_SIZE, DIM), torch.randn(HEADS, DIM, DIM)
    taken = min(seconds(lambda: [torch.bmm(a, b) for _ in range(100)]) for _ in range(5)) / 100
    squares, strips = PRODUCTS[cell]
    return taken * (length / CHUNK_SIZE) * (squares + strips * CHUNK_SIZE / DIM)


def run() -> list[dict]:
    rows, peers = [], {}
    for cell, rule in CELLS.items():
        for length in (256, 8192):
            inputs, peer_inputs = draw(length, cell), draw(length, "gated_delta_net")
            repeats = 9 if length == 256 else 1
            if length not in peers or length == 256:
                ours, peers[length], ratio = compare(both_passes(rule, inputs), both_passes(PEER, peer_inputs), repeats)
            else:
                ours = min(seconds(both_passes(rule, inputs)) for _ in range(3))
                ratio = peers[length] / ours
            forward = min(seconds(lambda r=rule, i=inputs: r(*i)) for _ in range(3))
            over_matmul = ours / matmul_seconds(length, cell)
            rows.append(
                {"cell": cell, "T": length, "forward_s": forward, "both_s": ours, "transformers_s": peers[length]}
                | {"ratio": ratio, "over_matmul": over_matmul, "over_half_T": ""}
            )
        longer = min(seconds(both_passes(rule, draw(16384, cell))) for _ in range(2))
        rows.append(
            {"cell": cell, "T": 16384, "forward_s": "", "both_s": longer, "transformers_s": "", "ratio": ""}
            | {"over_matmul": longer / matmul_seconds(16384, cell), "over_half_T": longer / ours}
        )
    return report("cells, forward and forward + backward", rows)
