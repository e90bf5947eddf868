"""Conversations into token ids and a loss mask, with the model's own chat template.

The ids are those of transformers' `apply_chat_template`, with one deliberate choice: a special token that is spelled
out in a message stays text, so that no message can forge a turn. To know which text is the template's own, the
template is rendered a second time with marks in place of the contents; a conversation whose rendering is not the
template's text with the contents in between (each once, as they are or trimmed) is not used.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np

from data_prep.chat_template import load_chat_template
from data_prep.protected_tokenizer import ProtectedTokenizer
from data_prep.readers.invalid import InvalidDocument
from pipeline.data.shard_format import DataError

MARK = "\ue0a0{}\ue0a1"
# White space around the marks shows what the template strips: what is left of it -> what `strip` takes away.
ALL_OF_LEFT, ALL_OF_RIGHT = "\n\u2003", "\u2002\n"
LEFT_PADS = {ALL_OF_LEFT: "", "\u2003": "\n", "": None}
RIGHT_PADS = {ALL_OF_RIGHT: "", "\u2002": "\n", "": None}
LAYOUTS_KEPT = 1024
PROBE = [{"role": "user", "content": "one question"}, {"role": "assistant", "content": "an answer"}]


@dataclass(frozen=True)
class _Literal:
    """Text of the template's own; `marked` as the tokenizer takes it.

    `ending` is the length of the special token that it begins with (the end of a turn), or 0.
    """

    text: str
    marked: str
    ending: int


@dataclass(frozen=True)
class _Slot:
    """Where a message's content stands: the characters stripped off it (None: white space), and what comes after."""

    message: int
    strip_left: str | None
    strip_right: str | None
    after: _Literal

    def content(self, messages: list[dict[str, str]]) -> str:
        return messages[self.message]["content"].lstrip(self.strip_left).rstrip(self.strip_right)


@dataclass(frozen=True)
class _Layout:
    """The template's text around the contents of conversations with certain roles."""

    first: _Literal
    slots: tuple[_Slot, ...]


class ConversationEncoder:
    """Renders, encodes and masks conversations.

    Args:
        tokenizer_json: the tokenizer; its chat template lies beside it (tokenizer_config.json or chat_template.jinja).

    Raises:
        DataError: no chat template, or one that does not render a question and its answer unambiguously.
    """

    def __init__(self, tokenizer_json: Path) -> None:
        self._template = load_chat_template(tokenizer_json.parent)
        self._tokenizer = ProtectedTokenizer(tokenizer_json)
        self._layout = lru_cache(LAYOUTS_KEPT)(self._find_layout)
        try:
            self.encode(PROBE)
        except InvalidDocument as error:
            raise DataError(
                f"the chat template of {self._template.path} cannot be used: a plain question and its answer give "
                f"{error.reason}; each content must appear once, as it is or trimmed"
            ) from error

    @property
    def template_sha256(self) -> str:
        """Of the template and the special tokens it may write (hex)."""
        return self._template.sha256

    def encode(self, messages: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes one conversation, as `build_messages` makes it.

        Returns:
            input_ids uint32 [n]; loss_mask uint8 [n], 1 for tokens that touch what the assistant wrote, or the special
            token that ends its turn. Where the template has generation tags, these decide.

        Raises:
            InvalidDocument: refused_by_template, ambiguous_rendering, no_supervised_token, special_token_in_text,
                reserved_character (of the end of Unicode's last private plane).
        """
        rendered, tagged = self._template.render(messages)
        layout = self._layout(tuple(message["role"] for message in messages))
        contents = [slot.content(messages) for slot in layout.slots]
        if any(self._tokenizer.is_reserved(content) for content in contents):
            raise InvalidDocument("reserved_character")
        filled = list(zip(contents, layout.slots, strict=True))
        if rendered != layout.first.text + "".join(content + slot.after.text for content, slot in filled):
            raise InvalidDocument("ambiguous_rendering")
        marked = layout.first.marked + "".join(content + slot.after.marked for content, slot in filled)
        ids, offsets, is_special = self._tokenizer.encode(marked)
        spans = tagged if self._template.has_generation_tags else _assistant_spans(layout, contents, messages)
        mask = _touching(spans, offsets, is_special)
        if not mask.any():
            raise InvalidDocument("no_supervised_token")
        return ids, mask

    def _find_layout(self, roles: tuple[str, ...]) -> _Layout:
        """What the template writes around any contents of messages with these roles.

        Raises:
            InvalidDocument: as `encode`.
        """
        marks = [MARK.format(number) for number in range(len(roles))]
        order, pieces = self._split(roles, marks, marks)
        padded_order, padded = self._split(roles, marks, [ALL_OF_LEFT + mark + ALL_OF_RIGHT for mark in marks])
        if order != padded_order:
            raise InvalidDocument("ambiguous_rendering")
        last = len(pieces) - 1
        pads = [_pads(bare, text, n == 0, n == last) for n, (bare, text) in enumerate(zip(pieces, padded, strict=True))]
        first, *others = [_Literal(p, self._tokenizer.translate(p), self._tokenizer.ending(p)) for p in pieces]
        slots = [
            _Slot(message, LEFT_PADS[pads[n][1]], RIGHT_PADS[pads[n + 1][0]], literal)
            for n, (message, literal) in enumerate(zip(order, others, strict=True))
        ]
        return _Layout(first, tuple(slots))

    def _split(self, roles: tuple[str, ...], marks: list[str], contents: list[str]) -> tuple[list[int], list[str]]:
        """The messages in the order in which they are rendered, and the pieces of text around their marks."""
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        rendered, _ = self._template.render(messages)
        if any(rendered.count(mark) != 1 for mark in marks):
            raise InvalidDocument("ambiguous_rendering")
        order = sorted(range(len(marks)), key=lambda number: rendered.index(marks[number]))
        pieces = []
        for number in order:
            piece, rendered = rendered.split(marks[number])
            pieces.append(piece)
        return order, [*pieces, rendered]


def _pads(bare: str, padded: str, is_first: bool, is_last: bool) -> tuple[str, str]:
    """What is left of the padding before and after a piece of the template's text."""
    for right, left in product([""] if is_first else RIGHT_PADS, [""] if is_last else LEFT_PADS):
        if padded == right + bare + left:
            return right, left
    raise InvalidDocument("ambiguous_rendering")


def _assistant_spans(layout: _Layout, contents: list[str], messages: list[dict[str, str]]) -> Iterator[tuple[int, int]]:
    """What the assistant wrote, each with the end of its turn: first and last + 1 character."""
    position = len(layout.first.text)
    for content, slot in zip(contents, layout.slots, strict=True):
        end = position + len(content)
        if messages[slot.message]["role"] == "assistant":
            yield position, end + slot.after.ending
        position = end + len(slot.after.text)


def _touching(spans: Iterable[tuple[int, int]], offsets: np.ndarray, is_special: np.ndarray) -> np.ndarray:
    """uint8 [n]: the tokens that overlap a span; a special one, which may take in white space, must begin in it."""
    mask = np.zeros(len(offsets), bool)
    for start, end in spans:
        touching = (offsets[:, 1] > start) & (offsets[:, 0] < end)
        mask |= touching & ~(is_special & (offsets[:, 0] < start))
    return mask.astype(np.uint8)
