"""A layer's cache of constant size: sinks, a window of keys and values with their write gates, and the memory's state.

One buffer of W = S + R slots a layer. The token at position p of its row's document lies in slot p while p < S (a
sink, for ever) and in slot S + (p - S) mod R after that, so a new token takes the slot of the one that it evicts and
nothing is moved. Rows of a left-padded batch have positions, and so slots, of their own. Softmax does not care about
the order of keys, which carry their positions themselves: decoding attends to the buffer as it lies.
"""

from typing import Literal

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from pipeline.ahn.base import Gates
from pipeline.attention.window import WindowSpec

MIN_CAPACITY = 64
MemoryMode = Literal["on", "off", "no_writes"]
"""`off`: sinks + window alone. `no_writes`: nothing enters the memory, which is read all the same."""


class HippocampusLayer(CacheLayerMixin):
    """One decoder layer's cache.

    `keys`, `values`: [B, Hkv, slots, D], slots growing up to W. `gates`: [B, slots - S, Hq] each, float32, for the
    tokens of the window that will be written. `state`: [B, Hq, D, D] or None while nothing was compressed.
    """

    def __init__(self, window: WindowSpec, memory: MemoryMode = "on") -> None:
        super().__init__()
        self.window = window
        self.memory = memory
        self.padding: Tensor | None = None  # int64 [B]: left padding of each row; None for none
        self.num_seen = 0
        self.gates: Gates = {}
        self.state: Tensor | None = None

    @property
    def is_croppable(self) -> bool:
        """Whether every token seen is still there as it was."""
        return self.num_seen <= self.window.lossless_budget

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.set_padding(self.padding)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Hands the new tokens on: the attention function knows when to `write` them, with their gates."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def set_padding(self, padding: Tensor | None) -> None:
        """Keeps it where the layer's keys are, which device_map may spread over devices."""
        self.padding = padding if padding is None or self.keys is None else padding.to(self.keys.device)

    def positions(self, start: int, end: int) -> Tensor:
        """Position of columns [start, end) in each row's document, [1 or B, end - start]; negative for padding."""
        columns = torch.arange(start, end, device=self.keys.device)[None]
        return columns if self.padding is None else columns - self.padding[:, None]

    def slots(self, positions: Tensor) -> Tensor:
        """Where tokens lie in the buffer; 0 for padding."""
        num_sinks, window = self.window.num_sink_tokens, self.window.window_size
        in_window = num_sinks + (positions - num_sinks).remainder(window)
        return torch.where(positions < num_sinks, positions, in_window).clamp(min=0)

    def window_columns(self) -> tuple[Tensor, Tensor, Gates, int]:
        """The newest R columns seen (or all) in order of time: keys, values [B, Hkv, n, D], gates [B, n, Hq], and
        how many. Columns that are padding or sinks have gates of other tokens, which must not be used."""
        count = min(self.num_seen, self.window.window_size)
        slots = self.slots(self.positions(self.num_seen - count, self.num_seen)).expand(self.keys.shape[0], -1)
        index = slots[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])
        gate_slots = (slots - self.window.num_sink_tokens).clamp(min=0)
        gates = {
            name: g.gather(1, gate_slots[..., None].expand(-1, -1, g.shape[2]))
            if g.shape[1]
            else g.new_zeros(g.shape[0], count, g.shape[2])  # all columns are sinks
            for name, g in self.gates.items()
        }
        return self.keys.gather(2, index), self.values.gather(2, index), gates, count

    def write(self, keys: Tensor, values: Tensor, gates: Gates) -> None:
        """Stores T new tokens [B, Hkv, T, D] with their gates [B, T, Hq], over those that they evict."""
        num_new, num_sinks = keys.shape[2], self.window.num_sink_tokens
        self._grow(keys, values, gates, self.num_seen + num_new)
        positions = self.positions(self.num_seen, self.num_seen + num_new)
        newest = torch.arange(num_new, device=keys.device) >= num_new - self.window.window_size
        kept = (positions >= 0) & ((positions < num_sinks) | newest)
        if self.padding is None:
            columns = kept[0].nonzero().squeeze(1)
            slots = self.slots(positions[0, columns])
            self.keys[:, :, slots], self.values[:, :, slots] = keys[:, :, columns], values[:, :, columns]
            of_window = slots >= num_sinks
            for name, gate in gates.items():
                self.gates[name][:, slots[of_window] - num_sinks] = gate[:, columns[of_window]]
        else:
            rows, columns = kept.nonzero(as_tuple=True)
            slots = self.slots(positions)[rows, columns]
            self.keys[rows, :, slots], self.values[rows, :, slots] = keys[rows, :, columns], values[rows, :, columns]
            of_window = slots >= num_sinks
            rows, columns, slots = rows[of_window], columns[of_window], slots[of_window] - num_sinks
            for name, gate in gates.items():
                self.gates[name][rows, slots] = gate[rows, columns]
        self.num_seen += num_new

    def take_evicted(self) -> tuple[Tensor, Tensor, Gates, Tensor]:
        """What the next column will evict: keys, values [B, Hkv, 1, D], gates [B, 1, Hq], and the positions that are
        evicted [1 or B, 1] (below S where a row evicts nothing)."""
        positions = self.positions(self.num_seen, self.num_seen + 1)
        slots = self.slots(positions).expand(self.keys.shape[0], -1)
        index = slots[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])
        gate_slots = (slots - self.window.num_sink_tokens).clamp(min=0)
        gates = {n: g.gather(1, gate_slots[..., None].expand(-1, -1, g.shape[2])) for n, g in self.gates.items()}
        return self.keys.gather(2, index), self.values.gather(2, index), gates, positions - self.window.window_size

    def slot_mask(self) -> Tensor | None:
        """Which slots hold tokens, [B, 1, 1, slots]; None when all do."""
        if self.padding is None and self.num_seen >= self.keys.shape[2]:
            return None
        filled = self.positions(self.num_seen - 1, self.num_seen) + 1  # tokens of each row
        slot = torch.arange(self.keys.shape[2], device=self.keys.device)
        return (slot < filled)[:, None, None].expand(self.keys.shape[0], -1, -1, -1)

    def _grow(self, keys: Tensor, values: Tensor, gates: Gates, num_tokens: int) -> None:
        """Makes room for `num_tokens`, by doubling, up to W slots."""
        budget, num_sinks, have = self.window.lossless_budget, self.window.num_sink_tokens, self.keys.shape[2]
        needed = min(num_tokens, budget)
        if needed > have:
            slots = min(budget, max(needed, 2 * have, MIN_CAPACITY))
            self.keys = torch.cat([self.keys, keys.new_zeros(*keys.shape[:2], slots - have, keys.shape[3])], 2)
            self.values = torch.cat(
                [self.values, values.new_zeros(*values.shape[:2], slots - have, values.shape[3])], 2
            )
        gate_slots = max(0, self.keys.shape[2] - num_sinks)
        for name, gate in gates.items():
            old = self.gates.get(name, gate[:, :0])
            if gate_slots > old.shape[1] or name not in self.gates:
                new = gate.new_zeros(gate.shape[0], gate_slots - old.shape[1], gate.shape[2])
                self.gates[name] = torch.cat([old, new], 1)

    def get_seq_length(self) -> int:
        """Tokens seen, not kept: positions go on from here."""
        return self.num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.__init__(self.window, self.memory)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the newest -tokens_to_remove tokens, as transformers calls it.

        Raises:
            ValueError: some token was already evicted, so what the buffer held before is gone; a positive number, or
                more tokens than were seen.
        """
        if tokens_to_remove == 0:
            return
        self.check_crop(tokens_to_remove)
        self.num_seen += tokens_to_remove

    def check_crop(self, tokens_to_remove: int) -> None:
        """
        Raises:
            ValueError: as `crop`.
        """
        if not -self.num_seen <= tokens_to_remove < 0:
            raise ValueError(f"crop takes minus the number of tokens to forget, of {self.num_seen}: {tokens_to_remove}")
        if not self.is_croppable:
            raise ValueError(
                f"cannot take back {-tokens_to_remove} of {self.num_seen} tokens: beyond {self.window} tokens are "
                f"evicted into the memory, which cannot be undone; take `snapshot()` before and `restore()` it"
            )

    def _select(self, rows: Tensor) -> None:
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            for name in ("keys", "values", "state", "padding"):
                value = getattr(self, name)
                if value is not None:
                    setattr(self, name, value.index_select(0, rows))
            self.gates = {name: g.index_select(0, rows) for name, g in self.gates.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._select(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def tensors(self) -> dict[str, Tensor]:
        """Keys, values, gates and state, by name."""
        named = {"keys": self.keys, "values": self.values, "state": self.state}
        named |= {f"gates.{name}": gate for name, gate in self.gates.items()}
        return {name: value for name, value in named.items() if value is not None}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `tensors` of another layer gave, but for keys and values."""
        self.state = tensors.get("state")
        self.gates = {n.removeprefix("gates."): t for n, t in tensors.items() if n.startswith("gates.")}

    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.tensors().values())
