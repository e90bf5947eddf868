"""GatedDeltaNet: the gated delta rule as a memory of evicted tokens.

Per query head, with row vectors q, k, v of size D and a state h [D, D]:

    h <- a (I - b k^T k) h + b k^T v,    o = D^-0.5 q h

with decay a = exp(g) and write strength b = beta. Layout everywhere: [B, T, H, D], time second. Keys and values
may have fewer heads than queries (GQA: query head i uses key head i // (Hq // Hkv)); gates and states are per query
head. Sources: arXiv 2412.06464 (recurrence, chunked form), arXiv 2510.07318 (its use as a memory).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.ahn.backend import resolve_backend
from pipeline.ahn.base import Gates, GroupedOutput, MemoryCell, l2_normalise
from pipeline.ahn.chunk_rule import chunk_rule
from pipeline.ahn.varlen import over_sequences


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
    """The recurrence, a token at a time: the reference, and the decoding step (T = 1).

    Args and returns as `chunk_gated_delta_rule`.
    """
    if cu_seqlens is not None:
        return over_sequences(
            naive_recurrent_gated_delta_rule,
            (q, k, v, g, beta),
            cu_seqlens,
            initial_state,
            output_final_state,
        )
    num_repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(num_repeats, dim=2) for x in (k, v))
    state = _zero_state(q, v) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        predicted = torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        update = (v[:, t] - predicted) * beta[:, t, :, None]
        state = state + k[:, t, :, :, None] * update[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) * q.shape[-1] ** -0.5)
    output = torch.stack(outputs, dim=1) if outputs else _empty_output(q, g, beta)
    return output, state if output_final_state else None


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
    if resolve_backend(q.device) == "fla":
        return _fla_gated_delta_rule(q, k, v, g, beta, initial_state, output_final_state, cu_seqlens)
    if cu_seqlens is not None:
        return over_sequences(chunk_gated_delta_rule, (q, k, v, g, beta), cu_seqlens, initial_state, output_final_state)
    if q.shape[1] <= 1:
        return naive_recurrent_gated_delta_rule(
            q, k, v, g, beta, initial_state=initial_state, output_final_state=output_final_state
        )
    state = _zero_state(q, v) if initial_state is None else initial_state
    output, state = chunk_rule(q, k, v, g, beta, state, scale=q.shape[-1] ** -0.5, delta=True)
    return output, state if output_final_state else None


def _fla_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule as fla_chunk
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as fla_recurrent

    if q.shape[1] == 0:
        state = _zero_state(q, v) if initial_state is None else initial_state
        return _empty_output(q, g, beta), state if output_final_state else None
    num_repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(num_repeats, dim=2) for x in (k, v))
    kernel = fla_recurrent if q.shape[1] == 1 else fla_chunk
    return kernel(
        q, k, v, g=g, beta=beta, initial_state=initial_state, output_final_state=output_final_state,
        cu_seqlens=cu_seqlens,
    )  # fmt: skip


def _zero_state(q: Tensor, v: Tensor) -> Tensor:
    return v.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])


def _empty_output(q: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """[B, 0, Hq, D], tied to the gates: on a rank without evictions every parameter still gets a (zero) gradient,
    so that collectives over gradients match on all ranks."""
    return q * (g + beta)[..., None]


class GatedDeltaNet(MemoryCell):
    """The cell's parameters and its use as a memory: 3 x hidden x H + 2 H + D + H D^2 parameters a layer.

    Parameter names are those of the published checkpoints.
    """

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
        return {
            "A_log": decay_rate.log(),
            "dt_bias": dt + torch.log(-torch.expm1(-dt)),  # softplus(dt_bias) = dt
            **self._initial_projections(("b_proj", "a_proj", "g_proj"), generator),
            "o_norm.weight": torch.ones_like(self.o_norm.weight, device="cpu"),
            "o_proj.weight": torch.zeros_like(self.o_proj.weight, device="cpu"),
        }

    def write_gates(self, hidden_states: Tensor) -> Gates:
        hidden_states = hidden_states.to(self.A_log.dtype)
        g = -self.A_log.exp() * F.softplus(self.a_proj(hidden_states) + self.dt_bias)
        return {"g": g, "beta": self.b_proj(hidden_states).sigmoid()}

    def read(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        read_hidden: Tensor,
        *,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = self.A_log.dtype
        output, state = chunk_gated_delta_rule(
            l2_normalise(q.to(dtype)),
            l2_normalise(k.to(dtype)),
            v.to(dtype),
            gates["g"],
            gates["beta"],
            initial_state=initial_state,
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
        )
        output = self.o_norm(output) * F.silu(self.g_proj(read_hidden.to(dtype)))[..., None]
        return self.o_proj(output), state
