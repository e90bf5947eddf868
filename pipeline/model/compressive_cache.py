"""The cache of a Compressive Transformer (arXiv 1911.05507) that is not trained: evicted tokens pooled by four.

Who sees what is said in `compressive_layout`. M slots and the 3 tokens that wait at most take the bytes of an AHN's
state, within one slot.
"""

from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipeline.attention.window import WindowSpec
from pipeline.byte_counts import format_bytes
from pipeline.errors import UserError
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_layer import MIN_CAPACITY, HippocampusLayer, MemoryMode
from pipeline.model.compressive_layout import BLOCK_LENGTH, MAX_WAITING, CompressiveLayout

Pooling = Literal["max", "mean"]


class CompressiveLayer(HippocampusLayer):
    """One decoder layer's cache: `keys`, `values` [B, Hkv, buffer, D]. The buffer grows up to S + R while nothing is
    evicted, and is whole from then on."""

    def __init__(self, layout: CompressiveLayout, pooling: Pooling) -> None:
        super().__init__(layout.window, memory="off")
        self.layout, self.pooling = layout, pooling

    def reset(self) -> None:
        self.__init__(self.layout, self.pooling)

    def slots(self, positions: Tensor) -> Tensor:
        return self.layout.slots(positions)

    def pool(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks [B, Hkv, n, D] that T new tokens [B, Hkv, T, D] complete."""
        first, end = (self.layout.num_blocks(n) for n in (self.num_seen, self.num_seen + keys.shape[2]))
        if first == end:
            return keys[:, :, :0], values[:, :, :0]
        start, stop = self.layout.first_token(first), self.layout.first_token(end)
        old = self.slots(torch.arange(start, max(start, min(stop, self.num_seen)), device=keys.device))
        new = slice(max(0, start - self.num_seen), max(0, stop - self.num_seen))

        def pooled(buffer: Tensor, x: Tensor) -> Tensor:
            x = torch.cat([buffer[:, :, old], x[:, :, new]], 2).unflatten(2, (end - first, BLOCK_LENGTH))
            return x.amax(3) if self.pooling == "max" else x.mean(3)

        return pooled(self.keys, keys), pooled(self.values, values)

    def append(self, keys: Tensor, values: Tensor, pooled_keys: Tensor, pooled_values: Tensor) -> None:
        """Stores T new tokens [B, Hkv, T, D] and the blocks [B, Hkv, n, D] that they complete."""
        seen, num_new, layout, device = self.num_seen, keys.shape[2], self.layout, keys.device
        self._make_room(keys, values, seen + num_new)
        num_sinks = min(max(0, self.window.num_sink_tokens - seen), num_new)
        first_kept = max(num_sinks, num_new - (layout.num_raw - self.window.num_sink_tokens))
        columns = torch.cat([torch.arange(num_sinks, device=device), torch.arange(first_kept, num_new, device=device)])
        slots = self.slots(seen + columns)
        self.keys[:, :, slots], self.values[:, :, slots] = keys[:, :, columns], values[:, :, columns]
        num_blocks = pooled_keys.shape[2]
        if num_blocks > 0:
            newest = torch.arange(max(0, num_blocks - layout.num_slots), num_blocks, device=device)
            slots = layout.num_raw + (layout.num_blocks(seen) + newest).remainder(layout.num_slots)
            self.keys[:, :, slots], self.values[:, :, slots] = pooled_keys[:, :, newest], pooled_values[:, :, newest]
        self.num_seen += num_new

    def _make_room(self, keys: Tensor, values: Tensor, num_tokens: int) -> None:
        have, budget = self.keys.shape[2], self.window.lossless_budget
        if num_tokens > budget:
            size = self.layout.num_raw + self.layout.num_slots
        else:
            size = have if num_tokens <= have else min(budget, max(num_tokens, 2 * have, MIN_CAPACITY))
        if size > have:
            self.keys = torch.cat([self.keys, keys.new_zeros(*keys.shape[:2], size - have, keys.shape[3])], 2)
            self.values = torch.cat([self.values, values.new_zeros(*values.shape[:2], size - have, values.shape[3])], 2)

    def memory_bytes(self) -> int:
        """Bytes of the slots and of the room for tokens that wait; 0 while nothing was evicted."""
        if not self.is_initialized or self.keys.shape[2] == 0:
            return 0
        compressed = max(0, self.keys.shape[2] - self.window.lossless_budget)
        return self.num_bytes() // self.keys.shape[2] * compressed


class CompressiveCache(HippocampusCache):
    """A `past_key_values` for AHN models, whose memories are not read; one `CompressiveLayer` a decoder layer
    with full attention.

    Args:
        config: the model's.
        dtype: of keys and values, for the number of slots.
        window: what attention keeps as it is.
        pooling: how 4 keys become one, and 4 values.

    Raises:
        UserError: the AHN's state has not the bytes of 1 slot and 3 waiting tokens.
    """

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, window: WindowSpec, pooling: Pooling) -> None:
        self._layout, self._pooling = CompressiveLayout(window, num_slots_of_state(config, dtype)), pooling
        super().__init__(config, window, memory="off")

    def new_layer(self, window: WindowSpec, memory: MemoryMode) -> HippocampusLayer:
        return CompressiveLayer(self._layout, self._pooling)

    def set_padding(self, attention_mask: Tensor | None, num_new: int) -> Tensor | None:
        """
        Raises:
            ValueError: a mask of another width, or one that hides something.
        """
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            raise ValueError("a CompressiveCache takes no padding: read rows of different lengths one by one")
        return super().set_padding(attention_mask, num_new)

    def memory_bytes(self) -> int:
        """Bytes of what holds evicted tokens, of all layers and rows."""
        return sum(layer.memory_bytes() for layer in self.layers if isinstance(layer, CompressiveLayer))


def num_slots_of_state(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """M: slots that take, with 3 waiting tokens, the bytes of an AHN state [Hq, D, D] in float32.

    Raises:
        UserError: none.
    """
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    state_bytes, slot_bytes = num_heads * head_dim**2 * 4, 2 * num_kv_heads * head_dim * dtype.itemsize
    num_slots = state_bytes // slot_bytes - MAX_WAITING
    if num_slots < 1:
        raise UserError(
            f"--variants: compressive_max and compressive_mean need {format_bytes((MAX_WAITING + 1) * slot_bytes)} a "
            f"layer ({format_bytes(slot_bytes)} a slot in {dtype}), an AHN state of this model has "
            f"{format_bytes(state_bytes)}; leave them out"
        )
    return num_slots
