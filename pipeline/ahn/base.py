"""What every memory cell has in common: the protocol the model drives, the grouped output, the normalisation.

A cell is fed queries and keys after RoPE, values as projected, and the layer's pre-normed hidden states:
write gates come from the hidden state of the token that is compressed, the output gate from that of the token
that reads. All its arithmetic is in its parameters' dtype: float32, whatever the base runs in.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from pipeline.ahn.passage import Passage

Gates = dict[str, Tensor]
"""Write gates of each token by name, [B, T, Hq] each. With all of them zero, a token writes nothing."""


class RankExchange(Protocol):
    """For a memory that several ranks of a group work on, each with the hidden states of some tokens: by heads, all
    tokens each, or by tokens, all heads each.

    `heads`: those of this rank.
    """

    heads: slice

    def recur(self, cell: "MemoryCell", q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Tensor:
        """The outputs [1, E, h, D] of the cell's recurrence; arguments as `MemoryCell.recur`'s."""

    def to_writes(self, gate: Tensor) -> Tensor:
        """[1, n, Hq] of the rank's tokens whose hidden states may be compressed -> [1, N, h] of all such tokens, as
        `MemoryCell.forward`'s write order counts them; without one of those that are compressed."""

    def to_reads(self, gate: Tensor) -> Tensor:
        """[1, n, Hq] of the rank's tokens -> [1, E, h] of those that read."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the group, differentiable."""


ALL_HEADS = slice(None)


def order_gates(gates: Gates, order: Tensor) -> Gates:
    """Gates [B, N, Hq] of the tokens that each key-value head writes, by `order` [B, E, Hkv]: [B, E, Hq]."""
    return {
        name: gate.gather(1, order.repeat_interleave(gate.shape[2] // order.shape[2], dim=2))
        for name, gate in gates.items()
    }


def l2_normalise(x: Tensor) -> Tensor:
    """x / |x| along the last dimension, with the epsilon inside the root as in fla's kernels."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class GroupedOutput(nn.Module):
    """One D x D output matrix per head, zero at first: an untrained memory adds exactly nothing."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, head_dim))

    def forward(self, x: Tensor, heads: slice = ALL_HEADS) -> Tensor:
        """[B, T, h, D] -> [B, T, h, D] of these heads."""
        return torch.einsum("bthi,hio->btho", x, self.weight[heads])


class MemoryCell(nn.Module, ABC):
    """A recurrent memory with one state [D, D] per query head; a subclass has an `o_proj: GroupedOutput`.

    Training and full forwards call the module (so that ZeRO-3's hooks see it); a cache, which keeps write gates
    until their token is evicted, calls `write_gates` and `read`.
    """

    scalar_transition: ClassVar[bool] = False
    """Whether a run of writes only scales an older state; else it is multiplied by a matrix [D, D]."""

    @abstractmethod
    def initial_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial value of every parameter by name, on the CPU, as published (arXiv 2510.07318)."""

    def long_memory_values(self) -> dict[str, Tensor]:
        """Initial values in place of published ones: at first, head after head forgets from 2^-4 to 2^-12 a token.

        As published, Mamba2 forgets 73 % a token and more, and GatedDeltaNet up to 80 %.
        """
        return {}

    @abstractmethod
    def write_gates(self, hidden_states: Tensor) -> Gates:
        """Gates of the tokens with these hidden states [B, T, hidden], for when they are compressed."""

    @abstractmethod
    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, heads: slice, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        """The cell's recurrence on normalised q and k of these heads; `options` are `read`'s."""

    def passage(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates) -> Passage:
        """What a run of writes, arguments as `recur`'s of all heads with B = 1, does to any state.

        The cell itself, with values [v, 0] of twice the width and [0, I] as its state: the second half, never written
        to, is what becomes of a state.
        """
        num_heads, head_dim = q.shape[2:]
        state = torch.cat([q.new_zeros(head_dim, head_dim), torch.eye(head_dim, dtype=q.dtype, device=q.device)], -1)
        wide = torch.cat([v, torch.zeros_like(v)], -1)
        state = state.expand(1, num_heads, -1, -1).contiguous()
        output, state = self.recur(q, k, wide, gates, ALL_HEADS, initial_state=state, output_final_state=True)
        increment, transition = state[0].chunk(2, -1)
        return Passage(*output.chunk(2, -1), transition, increment)

    @abstractmethod
    def read_gate(self, hidden_states: Tensor) -> Tensor:
        """The output gate of the tokens with these hidden states [B, T, hidden], [B, T, Hq]."""

    @abstractmethod
    def gate_output(self, output: Tensor, gate: Tensor, exchange: RankExchange | None) -> Tensor:
        """Output gate and norm, [B, E, h, D]; `gate` [B, E, h]."""

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
        options = {
            "initial_state": initial_state,
            "output_final_state": output_final_state,
            "cu_seqlens": cu_seqlens,
        }
        return self._read(q, k, v, gates, self.read_gate(read_hidden), **options)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        write_hidden: Tensor,
        read_hidden: Tensor,
        cu_seqlens: Tensor | None = None,
        exchange: RankExchange | None = None,
        write_order: Tensor | None = None,
    ) -> Tensor:
        """`read` from an empty memory with gates from `write_hidden` [B, E, hidden].

        With a `write_order`, int64 [B, E, Hkv], `write_hidden` [B, N, hidden] is of all tokens that could be written,
        of which each key-value head writes those of its column; q, k and v are in that order as they come.
        With an `exchange`, q, k, v and `write_order` are of this rank's heads, `write_hidden` and `read_hidden` of this
        rank's tokens [1, n, hidden], from which it makes what the heads need; it knows the bounds of the sequences.
        """
        gates, gate = self.write_gates(write_hidden), self.read_gate(read_hidden)
        if exchange is not None:
            gates, gate = {name: exchange.to_writes(g) for name, g in gates.items()}, exchange.to_reads(gate)
        if write_order is not None:
            gates = order_gates(gates, write_order)
        if exchange is None:
            return self._read(q, k, v, gates, gate, cu_seqlens=cu_seqlens)[0]
        output = exchange.recur(self, *self._prepare(q, k, v), gates)
        return self.o_proj(self.gate_output(output, gate, exchange), exchange.heads)

    def _read(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, gate: Tensor, **options: Tensor | bool | None
    ) -> tuple[Tensor, Tensor | None]:
        output, state = self.recur(*self._prepare(q, k, v), gates, ALL_HEADS, **options)
        return self.o_proj(self.gate_output(output, gate, None)), state

    def _prepare(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.o_proj.weight.dtype
        return l2_normalise(q.to(dtype)), l2_normalise(k.to(dtype)), v.to(dtype)

    @staticmethod
    def _slow_decay_rates(num_heads: int) -> Tensor:
        """-log of what is left of a state after a token, [Hq]."""
        return torch.linspace(-4, -12, num_heads).exp2()

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
