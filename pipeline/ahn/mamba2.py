"""Mamba2 (state space dual form) as a memory of evicted tokens.

    h <- e^(-dt A) h + dt k^T v,    o = q h

k plays B, q plays C and v plays x of arXiv 2405.21060. Unlike the delta rule, writes only add. The output gate comes
before the norm, and the norm spans all heads. Source of its use as a memory: arXiv 2510.07318.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ahn.base import Gates, GroupedOutput, MemoryCell
from pipeline.ahn.recurrence import RuleInputs, run_rule


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

    return (recurrent if inputs.q.shape[1] == 1 else chunk)(
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

    def write_gates(self, hidden_states: Tensor) -> Gates:
        return {"dt": F.softplus(self.dt_proj(hidden_states.to(self.A_log.dtype)) + self.dt_bias)}

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        return chunk_ssd(q, k, v, -self.A_log.exp() * gates["dt"], gates["dt"], **options)

    def gate_output(self, output: Tensor, read_hidden: Tensor) -> Tensor:
        gated = output * F.silu(self.g_proj(read_hidden))[..., None]
        return self.norm(gated.flatten(2)).view_as(gated)
