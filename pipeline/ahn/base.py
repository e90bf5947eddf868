"""What every memory cell has in common: the protocol the model drives, the grouped output, the normalisation.

A cell is fed queries and keys after RoPE, values as projected, and the layer's pre-normed hidden states:
write gates come from the hidden state of the token that is compressed, the output gate from that of the token
that reads. All its arithmetic is in its parameters' dtype: float32, whatever the base runs in.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

Gates = dict[str, Tensor]
"""Write gates of each token by name, [B, T, Hq] each. With all of them zero, a token writes nothing."""


def l2_normalise(x: Tensor) -> Tensor:
    """x / |x| along the last dimension, with the epsilon inside the root as in fla's kernels."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class GroupedOutput(nn.Module):
    """One D x D output matrix per head, zero at first: an untrained memory adds exactly nothing."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, D] -> [B, T, H, D]."""
        return torch.einsum("bthi,hio->btho", x, self.weight)


class MemoryCell(nn.Module, ABC):
    """A recurrent memory with one state [D, D] per query head; a subclass has an `o_proj: GroupedOutput`.

    Training and full forwards call the module (so that ZeRO-3's hooks see it); a cache, which keeps write gates
    until their token is evicted, calls `write_gates` and `read`.
    """

    @abstractmethod
    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial value of every parameter by name, on the CPU, as published (arXiv 2510.07318)."""

    @abstractmethod
    def write_gates(self, hidden_states: Tensor) -> Gates:
        """Gates of the tokens with these hidden states [B, T, hidden], for when they are compressed."""

    @abstractmethod
    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        """The cell's recurrence on normalised q and k; `options` are `read`'s."""

    @abstractmethod
    def gate_output(self, output: Tensor, read_hidden: Tensor) -> Tensor:
        """Output gate and norm, [B, E, Hq, D]."""

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
        """Compresses E tokens and reads after each one.

        Args:
            q: queries that read, [B, E, Hq, D]; query i reads after write i.
            k, v: keys and values of the compressed tokens, [B, E, Hkv, D].
            gates: write gates of the compressed tokens.
            read_hidden: hidden states of the reading tokens, [B, E, hidden].
            initial_state: [N, Hq, D, D] or None for an empty memory.
            output_final_state: also return the state.
            cu_seqlens: int [N + 1], bounds of independent sequences along E (B = 1).

        Returns:
            What to add to the attention output before o_proj, [B, E, Hq, D], and the state or None.
        """
        dtype = self.o_proj.weight.dtype
        output, state = self.recur(
            l2_normalise(q.to(dtype)),
            l2_normalise(k.to(dtype)),
            v.to(dtype),
            gates,
            initial_state=initial_state,
            output_final_state=output_final_state,
            cu_seqlens=cu_seqlens,
        )
        return self.o_proj(self.gate_output(output, read_hidden.to(dtype))), state

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        write_hidden: Tensor,
        read_hidden: Tensor,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """`read` from an empty memory with gates from `write_hidden` [B, E, hidden]."""
        gates = self.write_gates(write_hidden)
        return self.read(q, k, v, gates, read_hidden, cu_seqlens=cu_seqlens)[0]

    def _constant_and_normal_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Norm weights 1, biases 0, the output matrix 0, linear weights N(0, 0.02)."""
        values = {}
        for name, module in self.named_children():
            if isinstance(module, nn.Linear):
                values[f"{name}.weight"] = torch.empty(module.weight.shape).normal_(0, 0.02, generator=generator)
                if module.bias is not None:
                    values[f"{name}.bias"] = torch.zeros(module.bias.shape)
            elif isinstance(module, nn.RMSNorm):
                values[f"{name}.weight"] = torch.ones(module.weight.shape)
        return values | {"o_proj.weight": torch.zeros(self.o_proj.weight.shape)}
