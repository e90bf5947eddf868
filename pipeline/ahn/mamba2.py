"""Mamba2 (state space dual form) as a memory of evicted tokens.

    h <- e^(-dt A) h + dt k^T v,    o = q h

k plays B, q plays C and v plays x of arXiv 2405.21060. Unlike the delta rule, writes only add. The output gate comes
before the norm, and the norm spans all heads. Source of its use as a memory: arXiv 2510.07318.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ahn.base import ALL_HEADS, Gates, GroupedOutput, MemoryCell, RankExchange
from pipeline.ahn.passage import Passage
from pipeline.ahn.recurrence import RuleInputs, is_decoding, run_rule


def chunk_ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    dt: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The state space recurrence over a sequence, linear in T.

    Args and returns as `chunk_gated_delta_rule`; `dt` > 0 [B, T, Hq] is the write strength, and the output has no
    scale.
    """
    return run_rule(
        RuleInputs(q, k, v, g, dt),
        initial_state,
        output_final_state,
        cu_seqlens,
        scale=1.0,
        delta=False,
        fla_kernel=_fla_kernel,
    )


def naive_recurrent_ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    dt: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence, a token at a time. Args and returns as `chunk_ssd`."""
    return run_rule(
        RuleInputs(q, k, v, g, dt),
        initial_state,
        output_final_state,
        cu_seqlens,
        scale=1.0,
        delta=False,
        naive=True,
    )


def _fla_kernel(
    inputs: RuleInputs, initial_state: Tensor | None, output_final_state: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    from fla.ops.simple_gla import chunk_simple_gla as chunk
    from fla.ops.simple_gla import fused_recurrent_simple_gla as recurrent

    return (recurrent if is_decoding(inputs) else chunk)(
        inputs.q,
        inputs.k,
        inputs.v * inputs.beta[..., None],
        g=inputs.g,
        scale=1.0,
        initial_state=initial_state,
        output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )


class Mamba2(MemoryCell):
    """2 (hidden + 1) H + 2 H + H D + H D^2 parameters a layer, named as in the published checkpoints."""

    scalar_transition = True

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.norm = nn.RMSNorm(num_heads * head_dim, eps=1e-5)
        self.dt_proj = nn.Linear(hidden_size, num_heads)
        self.g_proj = nn.Linear(hidden_size, num_heads)
        self.o_proj = GroupedOutput(num_heads, head_dim)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        num_heads = self.A_log.shape[0]
        return self._constant_and_normal_values(generator) | {
            "A_log": torch.arange(1.0, num_heads + 1).log(),
            "dt_bias": torch.ones(num_heads),
        }

    def long_memory_values(self) -> dict[str, Tensor]:
        num_heads = self.A_log.shape[0]  # dt, which starts at softplus(1), is how strongly a token is written, too
        return {"A_log": (self._slow_decay_rates(num_heads) / F.softplus(torch.ones(num_heads))).log()}

    def write_gates(self, hidden_states: Tensor) -> Gates:
        return {"dt": F.softplus(self.dt_proj(hidden_states.to(self.A_log.dtype)) + self.dt_bias)}

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, heads: slice, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        return chunk_ssd(q, k, v, self._log_decay(gates, heads), gates["dt"], **options)

    def passage(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Passage:
        output, state = self.recur(q, k, v, gates, ALL_HEADS, output_final_state=True)
        decay = self._log_decay(gates, ALL_HEADS)[0].double().cumsum(0).exp().to(q.dtype)  # [E, Hq]
        return Passage(output, q * decay[..., None], decay[-1, :, None, None], state[0])

    def _log_decay(self, gates: Gates, heads: slice) -> Tensor:
        return -self.A_log[heads].exp() * gates["dt"]

    def read_gate(self, hidden_states: Tensor) -> Tensor:
        return F.silu(self.g_proj(hidden_states.to(self.g_proj.weight.dtype)))

    def gate_output(self, output: Tensor, gate: Tensor, exchange: RankExchange | None) -> Tensor:
        gated = output * gate[..., None]
        if exchange is None:
            return self.norm(gated.flatten(2)).view_as(gated)
        # The norm spans the channels of all heads, of which other ranks have some.
        mean_square = exchange.sum(gated.square().sum((-2, -1), keepdim=True)) / self.norm.weight.numel()
        weight = self.norm.weight.view(self.A_log.shape[0], -1)[exchange.heads]
        return gated * torch.rsqrt(mean_square + self.norm.eps) * weight
