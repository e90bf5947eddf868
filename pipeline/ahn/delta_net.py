"""DeltaNet: the delta rule, without decay, as a memory of evicted tokens.

    h <- (I - b k^T k) h + b k^T v,    o = D^-0.5 q h,    b = beta

Sources: arXiv 2406.06484 (rule, chunked form), arXiv 2510.07318 (its use as a memory).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ahn.base import Gates, GroupedOutput, MemoryCell, RankExchange
from pipeline.ahn.recurrence import RuleInputs, is_decoding, run_rule


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The delta rule over a sequence, linear in T. Args and returns as `chunk_gated_delta_rule`, without g."""
    return run_rule(
        RuleInputs(q, k, v, torch.zeros_like(beta), beta),
        initial_state,
        output_final_state,
        cu_seqlens,
        scale=q.shape[-1] ** -0.5,
        delta=True,
        fla_kernel=_fla_kernel,
    )


def naive_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The recurrence, a token at a time. Args and returns as `chunk_delta_rule`."""
    return run_rule(
        RuleInputs(q, k, v, torch.zeros_like(beta), beta),
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
    from fla.ops.delta_rule import chunk_delta_rule as chunk
    from fla.ops.delta_rule import fused_recurrent_delta_rule as recurrent

    options = {"initial_state": initial_state, "output_final_state": output_final_state, "cu_seqlens": cu_seqlens}
    if is_decoding(inputs):
        return recurrent(inputs.q, inputs.k, inputs.v, inputs.beta, **options)
    # The chunked kernel refuses float32 (states stay float32 inside); Triton's interpreter has no bfloat16.
    half = torch.bfloat16 if inputs.q.device.type == "cuda" else torch.float16
    output, state = chunk(inputs.q.to(half), inputs.k.to(half), inputs.v.to(half), inputs.beta.to(half), **options)
    return output.to(inputs.q.dtype), state


class DeltaNet(MemoryCell):
    """2 hidden H + D + H D^2 parameters a layer, named as in the published checkpoints."""

    def __init__(self, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, num_heads, bias=False)
        self.o_norm = nn.RMSNorm(head_dim, eps=1e-5)
        self.o_proj = GroupedOutput(num_heads, head_dim)

    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self._constant_and_normal_values(generator)

    def write_gates(self, hidden_states: Tensor) -> Gates:
        return {"beta": self.b_proj(hidden_states.to(self.b_proj.weight.dtype)).sigmoid()}

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, heads: slice, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        return chunk_delta_rule(q, k, v, gates["beta"], **options)

    def read_gate(self, hidden_states: Tensor) -> Tensor:
        return F.silu(self.g_proj(hidden_states.to(self.g_proj.weight.dtype)))

    def gate_output(self, output: Tensor, gate: Tensor, exchange: RankExchange | None) -> Tensor:
        return self.o_norm(output) * gate[..., None]
