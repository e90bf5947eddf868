"""Rows that hold several documents without padding, as the collators of others describe them.

transformers' DataCollatorWithFlattening and what is built on it say so by position_ids that start again, by the bounds
that flash attention takes (cu_seq_lens_q, cu_seq_lens_k) or by seq_idx. Each is a document boundary here, as
position_ids are to a plain model; where two of them are given they must say the same. Looking at them waits for the
device, so it is done only where they are given, and never for a single token or beside `documents`.
"""

from collections.abc import Iterable
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.attention.window import Document, WindowSpec

Starts = list[list[int]]
"""[row, column] of each document's first token, but for those in column 0; in order."""


class RowArguments(NamedTuple):
    """Keyword arguments of a forward that say where documents lie in its rows."""

    cu_seq_lens_q: Tensor | None = None
    cu_seq_lens_k: Tensor | None = None
    max_length_q: int | None = None
    max_length_k: int | None = None
    seq_idx: Tensor | None = None

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> "RowArguments":
        """Takes them out of `kwargs`.

        Raises:
            ValueError: bounds under another name, which nothing would look at.
        """
        taken = cls(**{name: kwargs.pop(name, None) for name in cls._fields})
        for name in kwargs:
            if name.startswith("cu_seq"):
                raise ValueError(f"`{name}` is unknown: give documents' bounds as cu_seq_lens_q and cu_seq_lens_k")
        return taken

    @property
    def named(self) -> list[str]:
        """Names of those that are given and say where documents begin."""
        return [n for n in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if getattr(self, n) is not None]

    def refuse_beside_documents(self) -> None:
        """
        Raises:
            ValueError: one is given that says where documents begin.
        """
        if self.named:
            raise ValueError(f"`documents` and {' and '.join(self.named)} say where documents begin; give one")


def packed_documents(
    arguments: RowArguments,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    size: tuple[int, int],
    window: WindowSpec,
    *,
    cached: bool,
) -> list[Document] | None:
    """The documents of a batch of `size` [B, T]; None if each row is one, which may have padding.

    Args:
        position_ids: [B, T] or [1, T]; they go up by one in a document, from any first one.
        attention_mask: [B, T], or with the tokens of a cache before.
        cached: the forward reads or writes a cache, which holds one document a row.

    Raises:
        ValueError: what is given contradicts itself, or several documents in a row with a cache or with padding.
    """
    starts_by_name = {}
    if position_ids is not None and size[1] > 1:
        starts_by_name["position_ids"] = _starts_of_positions(position_ids, attention_mask, size)
    if arguments.seq_idx is not None:
        index = _of_rows("seq_idx", arguments.seq_idx, size)
        starts_by_name["seq_idx"] = _after((index.diff() != 0).nonzero().tolist())
    for name, longest in (("cu_seq_lens_q", arguments.max_length_q), ("cu_seq_lens_k", arguments.max_length_k)):
        if getattr(arguments, name) is not None:
            starts_by_name[name] = _starts_of_bounds(name, getattr(arguments, name), longest, size)
    if not starts_by_name:
        return None
    starts = _agreed(starts_by_name)
    if (starts or arguments.named) and attention_mask is not None and not bool(attention_mask[:, -size[1] :].all()):
        raise ValueError(
            f"attention_mask hides tokens as padding, {' and '.join(starts_by_name)} put several documents into a row "
            f"or describe it without padding; leave attention_mask out for rows without padding"
        )
    if starts and cached:
        raise ValueError(
            f"{' and '.join(starts_by_name)} put several documents into a row, a cache holds one document a row: set "
            f"use_cache=False and give no past_key_values, or read each document as a row of its own"
        )
    return _documents(starts, size, window) if starts else None


def _starts_of_positions(position_ids: Tensor, attention_mask: Tensor | None, size: tuple[int, int]) -> Starts:
    """Where positions start again; what a mask hides may have any."""
    steps = _of_rows("position_ids", position_ids, size).diff()
    jumps = steps != 1
    if attention_mask is not None:
        seen = attention_mask[:, -size[1] :].bool()
        jumps = jumps & seen[:, 1:] & seen[:, :-1]
    places = jumps.nonzero()
    starts, steps = _after(places.tolist()), steps[jumps].tolist()
    for (row, column), step in zip(starts, steps, strict=True):
        if step > 1:
            raise ValueError(
                f"position_ids go up by {step} at token {column} of row {row}: they must go up by one in a document, "
                f"and start again with the next one"
            )
    return starts


def _starts_of_bounds(name: str, bounds: Tensor, longest: int | None, size: tuple[int, int]) -> Starts:
    if size[0] != 1:
        raise ValueError(f"{name} gives the bounds of documents in one row, found a batch of {size[0]} rows")
    ends = torch.as_tensor(bounds).tolist()
    if torch.as_tensor(bounds).ndim != 1 or ends[:1] != [0] or ends[-1:] != [size[1]] or ends != sorted(ends):
        raise ValueError(f"{name} must rise from 0 to the row's {size[1]} tokens, found {str(ends)[:80]}")
    found = max(end - start for start, end in pairwise(ends))
    if longest is not None and longest < found:
        raise ValueError(f"max_length{name[-2:]} is {longest}, {name} has a document of {found} tokens")
    return [[0, start] for start in sorted(set(ends)) if 0 < start < size[1]]


def _of_rows(name: str, values: Tensor, size: tuple[int, int]) -> Tensor:
    if values.ndim != 2 or values.shape[0] not in (1, size[0]) or values.shape[1] != size[1]:
        raise ValueError(f"{name} must be {list(size)} as the tokens, found {list(values.shape)}")
    return values.expand(*size)


def _after(places: Starts) -> Starts:
    return [[row, column + 1] for row, column in places]


def _agreed(starts_by_name: dict[str, Starts]) -> Starts:
    (name, starts), *others = starts_by_name.items()
    for other, its_starts in others:
        if its_starts != starts:
            row, column = min(set(map(tuple, starts)) ^ set(map(tuple, its_starts)))
            raise ValueError(
                f"{name} and {other} contradict each other: only one of them has a document begin at token {column} of "
                f"row {row}"
            )
    return starts


def _documents(starts: Starts, size: tuple[int, int], window: WindowSpec) -> list[Document]:
    of_rows = {row: [column for _, column in group] for row, group in groupby(starts, lambda start: start[0])}
    bounds: Iterable[list[int]] = ([0, *of_rows.get(row, []), size[1]] for row in range(size[0]))
    return [Document(row, s, e, window) for row, ends in enumerate(bounds) for s, e in pairwise(ends)]
