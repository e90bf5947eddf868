"""A cache of two texts, the first of which is read with what the second retains: the control of retained tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.attention.window import WindowSpec
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_layer import HippocampusLayer, MemoryMode
from pipeline.model.retained_cache import BaseAttention, RetainedLayer, Table


class LendingLayer(RetainedLayer):
    """Both rows have as many tokens, and none is padded. The second is read as always. The first sees its own sinks and
    window, and in place of its own those tokens that the second has kept since they left the window, at the positions
    that they have there."""

    decodes_in_place = False

    def attend(
        self, q: Tensor, whole: Table, drops: Tensor, *, scale: float, base_attention: BaseAttention
    ) -> Tensor:  # fmt: skip
        """As RetainedLayer's."""
        second = {name: x[1:] for name, x in whole.items()}
        lender = super().attend(q[1:], second, drops[1:], scale=scale, base_attention=base_attention)
        return torch.cat([self._attend_first(q[0], whole, drops[1], scale)[None], lender])

    def _attend_first(self, q: Tensor, whole: Table, drops: Tensor, scale: float) -> Tensor:
        """[T, Hq, D] of the first row's queries [Hq, T, D]; drops [Hkv, n] are the second's."""
        (own, lent), window = whole["position"].unsqueeze(2), self.window  # [Hkv, 1, K] each
        query = own[0, 0, -q.shape[1] :, None]
        until = torch.full_like(lent, query[-1, 0] + 1)
        last = query[len(query) - drops.shape[1] :].T.expand(drops.shape)
        until[:, 0] = until[:, 0].scatter(1, window.num_sink_tokens + drops, last)
        in_window = (own <= query) & ((own < window.num_sink_tokens) | (query - own < window.window_size))
        has_left = (lent >= window.num_sink_tokens) & (query - lent >= window.window_size)
        mask = torch.cat([in_window, has_left & (query < until)], 2)  # [Hkv, T, 2 K]
        k, v = (whole[name].transpose(0, 1).flatten(1, 2)[:, None] for name in ("keys", "values"))
        q = q.unflatten(0, (k.shape[0], -1))
        k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], scale=scale)
        return output.flatten(0, 1).transpose(0, 1)

    def of_first(self) -> RetainedLayer:
        """What the first row sees, as a layer of its own that goes on from there."""
        first = RetainedLayer(self.window, self.memory, self.scorer)
        first.lazy_initialization(self.keys[:1], self.values[:1])
        first.num_seen = self.num_seen
        first.state = None if self.state is None else self.state[:1]
        num_kept, num_sinks = min(self.num_seen, self.window.lossless_budget), self.window.num_sink_tokens
        parts = [min(num_sinks, num_kept), max(0, num_kept - num_sinks - self.window.window_size)]
        parts.append(num_kept - sum(parts))

        def choose(x: Tensor) -> Tensor:
            sinks, left, near = x.split(parts, 2)
            return torch.cat([sinks[:1], left[1:], near[:1]], 2)

        first.set_table({name: choose(x) for name, x in self.in_order().items()})
        return first


class LendingCache(HippocampusCache):
    """Where nothing is retained an ordinary cache; the cells' states are lent by foreign_memory.py."""

    def new_layer(self, window: WindowSpec, memory: MemoryMode) -> HippocampusLayer:
        return LendingLayer(window, memory) if window.num_retained_tokens else super().new_layer(window, memory)
