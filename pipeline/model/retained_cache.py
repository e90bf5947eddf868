"""The cache of a layer that retains tokens: as many slots as the lossless budget, each key-value head's own tokens.

While no token was dropped the token at position p lies in slot p. From then on each head's slots hold its sinks, its
retained and waiting tokens and its window, in any order: a new token takes the slot of the one that is dropped. What is
known of a token lies in its slot: position, what its score is made of, and whether it lost a decision and only waits
for its turn to be dropped.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ahn.base import Gates
from pipeline.attention.received import received_mass
from pipeline.attention.retained_attention import retained_attention
from pipeline.attention.window import WindowSpec
from pipeline.model.cache_layer import MIN_CAPACITY, HippocampusLayer, MemoryMode

Table = dict[str, Tensor]
"""Facts of tokens by name, [B, Hkv, tokens] or [B, Hkv, tokens, n]."""
BaseAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""The base's own kernel on q [B, Hq, T, D], k, v [B, Hkv, K, D] and a mask or None: [B, T, Hq, D]."""
EMPTY = -1


class TokenScorer(Protocol):
    """What chooses a layer's tokens in place of its memory's scorer."""

    def score_positions(self, positions: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        """What is known of the scores of tokens when they come, [n, T, Hkv] of `dtype`; positions int64 [n, T]."""

    def finish(self, partial: Tensor, received: Tensor, positions: Tensor) -> Tensor:
        """Scores [.., Hkv] when they leave the window, from `score_positions`', the masses they received, and
        positions."""


class RetainedLayer(HippocampusLayer):
    """One decoder layer's cache.

    `keys`, `values`: [B, Hkv, slots, D]. `facts`, [B, Hkv, slots] each: `position` in the row's document (-1: no
    token), `partial` score, `received` mass, `doomed`; and `gates.*` [B, Hkv, slots, group]. `sampled`: the queries so
    far that masses are made from, [B, Hq, n, D], scaled; None for padded rows and once a token was dropped. `scorer`:
    in place of the memory's.
    """

    decodes_in_place = True
    """Whether single tokens are read without sorting what is kept; `attend` is not called for those then."""

    def __init__(self, window: WindowSpec, memory: MemoryMode = "on", scorer: TokenScorer | None = None) -> None:
        super().__init__(window, memory)
        self.scorer = scorer
        self.facts: Table = {}
        self.sampled: Tensor | None = None

    @property
    def is_croppable(self) -> bool:
        return super().is_croppable and (self.sampled is not None or self.num_seen == 0)

    @property
    def num_pending(self) -> int:
        """Tokens of unpadded rows that lost the last decision and are not yet dropped."""
        w = self.window
        num_decided = self.num_seen - w.num_sink_tokens - w.window_size - w.num_retained_tokens  # and yet to be
        return (-num_decided - 1) % w.decision_interval if num_decided >= w.decision_interval else 0

    def new_tokens(self, keys: Tensor, values: Tensor, gates: Gates, partial: Tensor, first: int) -> Table:
        """The table of T tokens at positions `first` on: keys and values [B, Hkv, T, D], gates [B, T, Hq], partial
        scores [B, T, Hkv]."""
        shape, partial = keys.shape[:3], partial.transpose(1, 2)
        positions = torch.arange(first, first + shape[2], device=keys.device)
        table = {"keys": keys, "values": values, "position": positions.expand(shape), "partial": partial}
        table |= {"received": torch.zeros_like(partial), "doomed": positions.new_zeros(shape, dtype=torch.bool)}
        for name, gate in gates.items():
            table[f"gates.{name}"] = gate.unflatten(2, (shape[1], -1)).transpose(1, 2)
        return table

    def attend(
        self, q: Tensor, whole: Table, drops: Tensor, *, scale: float, base_attention: BaseAttention
    ) -> Tensor:  # fmt: skip
        """Attention of the next tokens of unpadded rows, [B, T, Hq, D].

        Args:
            q: queries [B, Hq, T, D].
            whole: what is kept before them, in order, and themselves.
            drops: which candidates of it leave before the last queries, one each, int64 [B, Hkv, n].
            scale: factor on the scores.
            base_attention: of the layer.
        """
        keys, values = whole["keys"], whole["values"]
        if drops.shape[2] == 0:
            return base_attention(q, keys, values, causal_mask(q, keys.shape[2]))
        return retained_attention(q, keys, values, self.window, drops, scale=scale)

    def table(self) -> Table:
        """All slots."""
        return {"keys": self.keys, "values": self.values, **self.facts} if self.facts else {}

    def set_table(self, table: Table) -> None:
        self.keys, self.values = table["keys"], table["values"]
        self.facts = {name: x for name, x in table.items() if name not in ("keys", "values")}

    def append(self, new: Table) -> None:
        """Stores the next tokens of unpadded rows in the slots of their positions, for which there is room in W."""
        seen, num_new = self.num_seen, new["keys"].shape[2]
        self.make_room(new, seen + num_new)
        for name, x in self.table().items():
            x[:, :, seen : seen + num_new] = new[name]
        self.num_seen += num_new

    def make_room(self, like: Table, num_tokens: int) -> None:
        """Has slots for `num_tokens`, by doubling, up to W."""
        have = self.keys.shape[2]
        if min(num_tokens, self.window.lossless_budget) <= have and self.facts:
            return
        slots = min(self.window.lossless_budget, max(num_tokens, 2 * have, MIN_CAPACITY))
        table = self.table() or {name: x[:, :, :0] for name, x in like.items()}
        self.set_table({name: grow(name, x, slots) for name, x in table.items()})

    def in_order(self) -> Table:
        """The tokens of unpadded rows in order of position: what a document would be without those dropped."""
        count = min(self.num_seen, self.window.lossless_budget)
        if count == 0:
            return {}
        if self.num_seen == count:
            return {name: x[:, :, :count] for name, x in self.table().items()}
        return take(self.table(), self.facts["position"].argsort(dim=2))

    def sample(self, queries: Tensor, scale: float) -> None:
        """Keeps those of the next queries [B, Hq, T, D] of unpadded rows from which masses are made, for `crop`."""
        stride = self.window.sampling_stride
        chosen = queries[:, :, -self.num_seen % stride :: stride] * scale
        if self.num_seen == 0:
            self.sampled = chosen
        elif self.sampled is not None:
            self.sampled = torch.cat([self.sampled, chosen], 2)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        if not tokens_to_remove or not self.facts:
            return
        self.facts["position"][:, :, self.num_seen :] = EMPTY
        if self.num_seen == 0:
            self.sampled = None
            return
        stride = self.window.sampling_stride
        self.sampled = self.sampled[:, :, : -(-self.num_seen // stride)]
        queries = self.sampled.repeat_interleave(stride, dim=2)[:, :, : self.num_seen]
        received = received_mass(queries, self.keys[:, :, : self.num_seen], self.window, scale=1.0)
        self.facts["received"][:, :, : self.num_seen] = received

    def reset(self) -> None:
        self.__init__(self.window, self.memory, self.scorer)

    def rows(self) -> list["RetainedLayer"]:
        """Each row of a padded batch as a layer of its own, without its padding."""
        rows = []
        for number, padding in enumerate(self.padding.tolist()):
            row = RetainedLayer(self.window, self.memory, self.scorer)
            row.lazy_initialization(self.keys[number : number + 1], self.values[number : number + 1])
            row.num_seen = max(0, self.num_seen - padding)
            kept = min(row.num_seen, self.window.lossless_budget)
            if kept:
                row.set_table({name: x[number : number + 1, :, :kept] for name, x in self.table().items()})
                row.state = None if self.state is None else self.state[number : number + 1]
            rows.append(row)
        return rows

    def join(self, rows: list["RetainedLayer"], num_new: int) -> None:
        """Takes what became of `rows` after `num_new` columns."""
        slots = max(row.keys.shape[2] for row in rows)
        like = next(row.table() for row in rows if row.facts)
        tables = [row.table() or {name: x[:, :, :0] for name, x in like.items()} for row in rows]
        tables = [{name: grow(name, x, slots) for name, x in table.items()} for table in tables]
        self.set_table({name: torch.cat([table[name] for table in tables]) for name in like})
        states = [row.state for row in rows]
        known = next((state for state in states if state is not None), None)
        if known is not None:
            self.state = torch.cat([torch.zeros_like(known) if state is None else state for state in states])
        self.num_seen += num_new

    def _select(self, rows: Tensor) -> None:
        super()._select(rows)
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            self.facts = {name: x.index_select(0, rows) for name, x in self.facts.items()}
            self.sampled = None if self.sampled is None else self.sampled.index_select(0, rows)

    def tensors(self) -> dict[str, Tensor]:
        named = {"keys": self.keys, "values": self.values, "state": self.state, "sampled": self.sampled, **self.facts}
        return {name: value for name, value in named.items() if value is not None}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.state, self.sampled = tensors.get("state"), tensors.get("sampled")
        self.facts = {name: x for name, x in tensors.items() if name not in ("keys", "values", "state", "sampled")}


def take(table: Table, index: Tensor) -> Table:
    """Some tokens of a table, int64 [B, Hkv, n]."""
    return {
        name: x.gather(2, index if x.ndim == 3 else index[..., None].expand(-1, -1, -1, x.shape[3]))
        for name, x in table.items()
    }


def grow(name: str, x: Tensor, slots: int) -> Tensor:
    """More slots, empty ones."""
    missing = (0, slots - x.shape[2]) if x.ndim == 3 else (0, 0, 0, slots - x.shape[2])
    return F.pad(x, missing, value=EMPTY if name == "position" else 0)


def causal_mask(q: Tensor, num_keys: int) -> Tensor | None:
    """For the last queries of `num_keys` tokens; None where the base's kernel needs none."""
    num_queries = q.shape[2]
    if num_queries in (1, num_keys):
        return None
    query = torch.arange(num_keys - num_queries, num_keys, device=q.device)
    mask = torch.arange(num_keys, device=q.device) <= query[:, None]
    return mask[None, None].expand(q.shape[0], 1, -1, -1)


def join_tables(first: Table, second: Table) -> Table:
    return {name: torch.cat([first[name], x], 2) for name, x in second.items()} if first else second
