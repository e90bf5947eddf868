"""The recurrence that all cells share, token by token, and where a call of it runs.

Per query head, with row vectors q, k, v of size D, log decays g <= 0, write strengths b and a state h [D, D]:

    delta rule:  h <- e^g (h - b k^T (k h)) + b k^T v        (DeltaNet: g = 0; GatedDeltaNet)
    otherwise:   h <- e^g h + b k^T v                        (Mamba2: b = dt)
    output:      o = scale q h                               (after the token's own write)

Layout everywhere: [B, T, H, D], time second. Keys and values may have fewer heads than queries (GQA: query head i
uses key head i // (Hq // Hkv)); gates and states are per query head.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.ahn.backend import resolve_backend
from pipeline.ahn.chunk_rule import chunk_rule
from pipeline.ahn.varlen import over_sequences

FlaKernel = Callable[..., tuple[Tensor, Tensor | None]]


class RuleInputs(NamedTuple):
    """q [B, T, Hq, D]; k, v [B, T, Hkv, D]; g, beta [B, T, Hq]."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor


def naive_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *, scale: float, delta: bool
) -> tuple[Tensor, Tensor]:
    """One token at a time: the reference, and the decoding step. Arguments and returns as `chunk_rule`."""
    num_repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(num_repeats, dim=2) for x in (k, v))
    outputs = []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        update = v[:, t]
        if delta:
            update = update - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + k[:, t, :, :, None] * (update * beta[:, t, :, None])[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) * scale)
    return torch.stack(outputs, dim=1), state


def run_rule(
    inputs: RuleInputs,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
    *,
    scale: float,
    delta: bool,
    fla_kernel: FlaKernel | None = None,
    naive: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Outputs [B, T, Hq, D] and, if asked for, final states [N, Hq, D, D].

    Args:
        inputs: of the rule; T may be 0.
        initial_state: [N, Hq, D, D], N = B or the number of sequences with `cu_seqlens`; None for zeros.
        output_final_state: also return the state after the last token.
        cu_seqlens: int [N + 1], bounds of N independent sequences along T; needs B = 1.
        scale: factor on the output.
        delta: whether a write first removes what its key reads.
        fla_kernel: the same on fla's Triton kernels, for CUDA; takes `inputs` with keys and values repeated to the
            query heads, and the next three arguments.
        naive: token by token, wherever it runs.
    """
    q = inputs.q
    if q.shape[1] == 0:
        # Tied to the gates: on a rank without evictions every parameter still gets a (zero) gradient, so that
        # collectives over gradients match on all ranks.
        empty = q * (inputs.g + inputs.beta)[..., None]
        state = _zero_state(inputs) if initial_state is None else initial_state
        return empty, state if output_final_state else None
    if fla_kernel is not None and not naive and resolve_backend(q.device) == "fla":
        num_repeats = q.shape[2] // inputs.k.shape[2]
        k, v = (x.repeat_interleave(num_repeats, dim=2) for x in (inputs.k, inputs.v))
        return fla_kernel(inputs._replace(k=k, v=v), initial_state, output_final_state, cu_seqlens)
    rule = naive_rule if naive or q.shape[1] == 1 else chunk_rule

    def batched(*tensors: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
        own = RuleInputs(*tensors)
        state = _zero_state(own) if initial_state is None else initial_state
        return rule(*own, state, scale=scale, delta=delta)

    if cu_seqlens is None:
        output, state = batched(*inputs, initial_state=initial_state)
    else:
        output, state = over_sequences(batched, inputs, cu_seqlens, initial_state)
    return output, state if output_final_state else None


def is_decoding(inputs: RuleInputs) -> bool:
    """Whether fla's recurrent kernels can do it: not all have a backward pass."""
    return inputs.q.shape[1] == 1 and not torch.is_grad_enabled()


def _zero_state(inputs: RuleInputs) -> Tensor:
    q, v = inputs.q, inputs.v
    return v.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
