"""GatedDeltaNet: the gated delta rule as a memory of evicted tokens.

    h <- a (I - b k^T k) h + b k^T v,    o = D^-0.5 q h,    a = e^g,  b = beta

Sources: arXiv 2412.06464 (recurrence, chunked form), arXiv 2510.07318 (its use as a memory).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ahn.base import Gates, GroupedOutput, MemoryCell, RankExchange
from pipeline.ahn.recurrence import RuleInputs, is_decoding, run_rule


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule over a sequence, linear in T: chunks of 64 tokens as matrix products.

    q and k are used as they are: normalise before. On CUDA with fla installed its Triton kernel runs.

    Args:
        q: queries [B, T, Hq, D].
        k: keys [B, T, Hkv, D], Hq a multiple of Hkv.
        v: values [B, T, Hkv, D].
        g: log decay [B, T, Hq], <= 0.
        beta: write strength [B, T, Hq], in [0, 1].
        initial_state: [N, Hq, D, D] (N = B, or the number of sequences with `cu_seqlens`); None for zeros.
        output_final_state: also return the state after the last token.
        cu_seqlens: int [N + 1], bounds of N independent sequences along T; needs B = 1.

    Returns:
        Outputs [B, T, Hq, D] (token t reads after its own write) and the final state [N, Hq, D, D] or None.
    """
    return run_rule(
        RuleInputs(q, k, v, g, beta),
        initial_state,
        output_final_state,
        cu_seqlens,
        scale=q.shape[-1] ** -0.5,
        delta=True,
        fla_kernel=_fla_kernel,
    )


def naive_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence, a token at a time. Args and returns as `chunk_gated_delta_rule`."""
    return run_rule(
        RuleInputs(q, k, v, g, beta),
        initial_state,
        output_final_state,
        cu_seqlens,
        scale=q.shape[-1] ** -0.5,
        delta=True,
        naive=True,
    )


def _fla_kernel(
    inputs: RuleInputs, initial_state: Tensor | None, output_final_state: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as chunk
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as recurrent

    return (recurrent if is_decoding(inputs) else chunk)(
        **inputs._asdict(),
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


class GatedDeltaNet(MemoryCell):
    """3 hidden H + 2 H + D + H D^2 parameters a layer, named as in the published checkpoints."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.a_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.o_norm = nn.RMSNorm(head_dim, eps=1e-5)
        self.o_proj = GroupedOutput(num_heads, head_dim)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_heads = self.A_log.shape[0]
        decay_rate = torch.empty(num_heads).uniform_(0, 16, generator=generator).clamp_(min=1e-4)  # log(0) else
        low, high = math.log(1e-3), math.log(0.1)
        dt = torch.empty(num_heads).uniform_(low, high, generator=generator).exp().clamp_(min=1e-4)
        return self._constant_and_normal_values(generator) | {
            "A_log": decay_rate.log(),
            "dt_bias": _inverse_softplus(dt),
        }

    def long_memory_values(self) -> dict[str, Tensor]:
        dt = self._slow_decay_rates(self.A_log.shape[0])
        return {"A_log": torch.zeros_like(dt), "dt_bias": _inverse_softplus(dt)}

    def write_gates(self, hidden_states: Tensor) -> Gates:
        hidden_states = hidden_states.to(self.A_log.dtype)
        g = -self.A_log.exp() * F.softplus(self.a_proj(hidden_states) + self.dt_bias)
        return {"g": g, "beta": self.b_proj(hidden_states).sigmoid()}

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, heads: slice, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        return chunk_gated_delta_rule(q, k, v, gates["g"], gates["beta"], **options)

    def read_gate(self, hidden_states: Tensor) -> Tensor:
        return F.silu(self.g_proj(hidden_states.to(self.g_proj.weight.dtype)))

    def gate_output(self, output: Tensor, gate: Tensor, exchange: RankExchange | None) -> Tensor:
        return self.o_norm(output) * gate[..., None]


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
