"""A sample's tokens as text for the terminal, with the supervised parts marked."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.errors import escape_controls

INDENT = "    | "
VISIBLE_CONTROLS = "\n\t\u200d"

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Marks:
    """What is put before and after a supervised part."""

    begin: str
    end: str


BRACKETS = Marks("⟦", "⟧")
COLOURS = Marks("\x1b[1;32m", "\x1b[0m")


def render_document(
    input_ids: np.ndarray, loss_mask: np.ndarray | None, decode: Decode, width: int, marks: Marks
) -> str:
    """The text of one document, or its beginning and end when it is longer than 2 * `width` tokens.

    Args:
        input_ids: uint32 [n].
        loss_mask: uint8 [n], or None where nothing is marked.
        decode: token ids to text.
        width: tokens to show of either end.
        marks: put around the supervised parts.
    """
    mask = np.zeros(len(input_ids), np.uint8) if loss_mask is None else loss_mask
    if len(input_ids) <= 2 * width:
        return _indented(_mark(input_ids, mask, decode, marks))
    head = _mark(input_ids[:width], mask[:width], decode, marks)
    tail = _mark(input_ids[-width:], mask[-width:], decode, marks)
    return f"{_indented(head)}\n    ... {len(input_ids) - 2 * width:,} tokens ...\n{_indented(tail)}"


def print_ids(input_ids: list[int]) -> str:
    """Stands in for a tokenizer's `decode` where there is none."""
    return "".join(f"{token} " for token in input_ids)


def _mark(input_ids: np.ndarray, mask: np.ndarray, decode: Decode, marks: Marks) -> str:
    """Decodes in one go, because a token may be a part of a character and its text depend on what precedes it."""
    ids = input_ids.tolist()
    text, shown = decode(ids), ""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)]
    begin = 0
    for first, last in pairwise(edges):
        end = len(text) if last == len(ids) else max(begin, _common_prefix(decode(ids[:last]), text))
        part = escape_controls(text[begin:end], VISIBLE_CONTROLS)
        shown += f"{marks.begin}{part}{marks.end}" if mask[first] else part
        begin = end
    return shown


def _common_prefix(part: str, text: str) -> int:
    """Characters that both begin with; they differ where `part` ends within a character."""
    if text.startswith(part):
        return len(part)
    return next(n for n, (a, b) in enumerate(zip(part + "\0", text + "\1", strict=False)) if a != b)


def _indented(text: str) -> str:
    return "\n".join(INDENT + line for line in text.split("\n"))
