"""The cache of constant size: sinks, a window of keys and values with their write gates, and the memory's state.

Tokens are columns that all rows of a batch share. A column leaves the window when `window_size` newer ones have come;
per row it is then padding, a sink (kept in a slot of its own from the start) or a write into the memory.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline.ahn.base import Gates
from pipeline.attention.window import WindowSpec


class HippocampusLayer(CacheLayerMixin):
    """One decoder layer's cache. `keys` and `values` [B, Hkv, <= window_size, D] are the window."""

    def __init__(self, window: WindowSpec) -> None:
        super().__init__()
        self.window = window
        self.padding: Tensor | None = None  # int64 [B]: left padding of each row; None for none
        self.num_seen = 0
        self.sink_keys: Tensor | None = None
        self.sink_values: Tensor | None = None
        self.gates: Gates = {}
        self.state: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        slots = (*key_states.shape[:2], self.window.num_sink_tokens, key_states.shape[3])
        self.sink_keys, self.sink_values = key_states.new_zeros(slots), value_states.new_zeros(slots)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Takes T new tokens; returns window and new tokens [B, Hkv, K, D], the last T of them new."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._fill_sinks(key_states, value_states)
        keys, values = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        self.keys, self.values = self._newest(keys, 2), self._newest(values, 2)
        self.num_seen += key_states.shape[2]
        return keys, values

    def push_gates(self, gates: Gates) -> Gates:
        """Takes the new tokens' write gates; returns those of window and new tokens [B, K, Hq]."""
        gates = {name: torch.cat([self.gates[name], g], 1) if self.gates else g for name, g in gates.items()}
        self.gates = {name: self._newest(g, 1) for name, g in gates.items()}
        return gates

    def first_position(self, num_columns: int) -> Tensor | None:
        """Position in its row's document of the oldest of the newest `num_columns` columns; None: 0 in all rows."""
        first = self.num_seen - num_columns
        if self.padding is not None:
            return first - self.padding
        return None if first == 0 else torch.full((1,), first, device=self.keys.device)

    def _newest(self, x: Tensor, dim: int) -> Tensor:
        excess = x.shape[dim] - self.window.window_size
        # clone: a view would keep a whole prefill chunk alive
        return x.narrow(dim, excess, self.window.window_size).clone() if excess > 0 else x

    def _fill_sinks(self, keys: Tensor, values: Tensor) -> None:
        slot = torch.arange(self.window.num_sink_tokens, device=keys.device)
        column = slot - self.num_seen  # [S], or [B, S] with padding
        if self.padding is not None:
            column = column + self.padding[:, None]
        elif self.num_seen >= self.window.num_sink_tokens:
            return
        is_new = ((column >= 0) & (column < keys.shape[2])).reshape(-1, 1, len(slot), 1)
        index = column.clamp(0, keys.shape[2] - 1).reshape(-1, 1, len(slot), 1)
        index = index.expand(keys.shape[0], keys.shape[1], -1, keys.shape[3])
        self.sink_keys = torch.where(is_new, keys.gather(2, index), self.sink_keys)
        self.sink_values = torch.where(is_new, values.gather(2, index), self.sink_values)

    def get_seq_length(self) -> int:
        """Tokens seen, not kept: positions go on from here."""
        return self.num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.__init__(self.window)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if not self.is_initialized:
            return
        beam_idx = beam_idx.to(self.keys.device)
        for name in ("keys", "values", "sink_keys", "sink_values", "state", "padding"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, beam_idx))
        self.gates = {name: g.index_select(0, beam_idx) for name, g in self.gates.items()}

    def num_bytes(self) -> int:
        """Bytes of everything kept."""
        kept = [self.keys, self.values, self.sink_keys, self.sink_values, self.state, *self.gates.values()]
        return sum(x.numel() * x.element_size() for x in kept if x is not None)


class HippocampusCache(Cache):
    """A `past_key_values` for AHN models; one `HippocampusLayer` a decoder layer."""

    layers: list[HippocampusLayer]

    def __init__(self, num_layers: int, window: WindowSpec) -> None:
        super().__init__(layers=[HippocampusLayer(window) for _ in range(num_layers)])
        self.window = window

    def set_padding(self, attention_mask: Tensor | None) -> None:
        """Notes each row's left padding from the mask [B, seen + new].

        Raises:
            ValueError: a hole or right padding.
        """
        padding = None
        if attention_mask is not None and not bool(attention_mask.all()):
            mask = attention_mask.bool()
            padding = (mask.cumsum(-1) == 0).sum(-1)
            if not bool((mask.sum(-1) == mask.shape[1] - padding).all()):
                raise ValueError("with a cache, attention_mask may hide left padding only: pad prompts on the left")
        for layer in self.layers:
            layer.padding = padding

    def num_bytes(self) -> int:
        return sum(layer.num_bytes() for layer in self.layers)
