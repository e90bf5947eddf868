"""What a chat template writes around the texts of a conversation, found by rendering marks in their places."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from data_prep.chat_template import ChatTemplate
from data_prep.readers.invalid import InvalidDocument

MARK = "\ue0a0{}\ue0a1"
# White space around the marks shows what the template strips: what is left of it -> what `strip` takes away.
ALL_OF_LEFT, ALL_OF_RIGHT = "\n\u2003", "\u2002\n"
LEFT_PADS = {ALL_OF_LEFT: "", "\u2003": "\n", "": None}
RIGHT_PADS = {ALL_OF_RIGHT: "", "\u2002": "\n", "": None}
THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
INLINE_REASONING = re.compile(rf"(\s*){THOUGHT}(.*?){END_OF_THOUGHT}(.*)", re.DOTALL)


@dataclass(frozen=True)
class Shape:
    """What decides how a message is rendered, beside its texts.

    Its texts are its content, and before that its reasoning where it has one: in a field of its own, or `inline`,
    between tags and after the white space `head` in the content. `others` are its other fields.
    """

    role: str
    reasoning: Literal["none", "inline", "field"]
    head: str
    others: tuple[tuple[str, str], ...]

    @property
    def num_texts(self) -> int:
        return 1 if self.reasoning == "none" else 2

    def message(self, texts: Sequence[str], escape: Callable[[str], str]) -> dict[str, str]:
        """The message of this shape with these texts; its other fields as `escape` writes them."""
        message = {"role": self.role, "content": texts[-1], **{name: escape(value) for name, value in self.others}}
        if self.reasoning == "inline":
            message["content"] = f"{self.head}{THOUGHT}{texts[0]}{END_OF_THOUGHT}{texts[1]}"
        elif self.reasoning == "field":
            message["reasoning_content"] = texts[0]
        return message


def shape_of(message: dict[str, str], split_reasoning: bool) -> tuple[Shape, list[str]]:
    """The message's shape and texts; with `split_reasoning` an assistant's inline reasoning is a text of its own."""
    others = tuple((name, message[name]) for name in message if name not in ("role", "content", "reasoning_content"))
    role, content = message["role"], message["content"]
    if "reasoning_content" in message:
        return Shape(role, "field", "", others), [message["reasoning_content"], content]
    found = INLINE_REASONING.fullmatch(content) if split_reasoning and role == "assistant" else None
    if found:
        return Shape(role, "inline", found[1], others), [found[2], found[3]]
    return Shape(role, "none", "", others), [content]


@dataclass(frozen=True)
class Piece:
    """Text of the template's own; `marked` as the tokenizer takes it.

    `ending` is the length of the special token that it begins with (the end of a turn), or 0.
    """

    text: str
    marked: str
    ending: int


@dataclass(frozen=True)
class Slot:
    """Where a text stands: the characters stripped off it (None: white space), and what comes after.

    `opening` is how much of what comes before a reasoning the assistant writes itself (a tag, say).
    """

    message: int
    text: int
    is_reasoning: bool
    opening: int
    strip_left: str | None
    strip_right: str | None
    after: Piece

    def fill(self, texts: Sequence[str]) -> str:
        return texts[self.text].lstrip(self.strip_left).rstrip(self.strip_right)


@dataclass(frozen=True)
class Layout:
    """The template's text around the texts of conversations of certain shapes. Some reasoning may have no slot."""

    shapes: tuple[Shape, ...]
    first: Piece
    slots: tuple[Slot, ...]


class LayoutFinder:
    """Finds layouts. `escape` spells a text so that no special token stands in it; `make_piece` undoes that."""

    def __init__(
        self, template: ChatTemplate, escape: Callable[[str], str], make_piece: Callable[[str], Piece]
    ) -> None:
        self._template, self._escape, self._make_piece = template, escape, make_piece

    def find(self, shapes: tuple[Shape, ...], beside: str) -> Layout:
        """What the template writes around any texts of messages of these shapes.

        Args:
            beside: JSON of [tools, documents].

        Raises:
            InvalidDocument: ambiguous_rendering, refused_by_template.
        """
        marks = [MARK.format(number) for number in range(sum(shape.num_texts for shape in shapes))]
        order, pieces = self.split(shapes, marks, marks, beside)
        padded_order, padded = self.split(shapes, marks, [ALL_OF_LEFT + m + ALL_OF_RIGHT for m in marks], beside)
        if order != padded_order:
            raise InvalidDocument("ambiguous_rendering")
        last = len(pieces) - 1
        pads = [_pads(bare, text, n == 0, n == last) for n, (bare, text) in enumerate(zip(pieces, padded, strict=True))]
        owners = [(n, shape.num_texts - k) for n, shape in enumerate(shapes) for k in range(shape.num_texts)]
        slots = []
        for n, text in enumerate(order):
            message, num_left = owners[text]
            is_reasoning = num_left == 2
            opening = self._opening(shapes, message, marks, beside, pieces[n]) if is_reasoning else 0
            strips = LEFT_PADS[pads[n][1]], RIGHT_PADS[pads[n + 1][0]]
            slots.append(Slot(message, text, is_reasoning, opening, *strips, self._make_piece(pieces[n + 1])))
        return Layout(shapes, self._make_piece(pieces[0]), tuple(slots))

    def split(
        self, shapes: Sequence[Shape], marks: list[str], texts: list[str], beside: str
    ) -> tuple[list[int], list[str]]:
        """The texts' numbers in the order in which they are rendered, and the pieces of text around their marks."""
        rendered = self._render(shapes, texts, beside)
        least = [n for shape in shapes for n in ((0, 1) if shape.num_texts == 2 else (1,))]  # reasoning may be left out
        counts = [rendered.count(mark) for mark in marks]
        if any(not minimum <= count <= 1 for count, minimum in zip(counts, least, strict=True)):
            raise InvalidDocument("ambiguous_rendering")
        shown = [number for number, count in enumerate(counts) if count]
        order = sorted(shown, key=lambda number: rendered.index(marks[number]))
        pieces = []
        for number in order:
            piece, rendered = rendered.split(marks[number])
            pieces.append(piece)
        return order, [*pieces, rendered]

    def _render(self, shapes: Sequence[Shape], texts: Sequence[str], beside: str, prompt: bool = False) -> str:
        left = iter(texts)
        messages = [shape.message([next(left) for _ in range(shape.num_texts)], self._escape) for shape in shapes]
        tools, documents = (_escaped(value, self._escape) for value in json.loads(beside))
        return self._template.render(messages, tools, documents, add_generation_prompt=prompt)[0]

    def _opening(self, shapes: Sequence[Shape], message: int, marks: list[str], beside: str, before: str) -> int:
        """How much of the text before a reasoning comes after what the assistant is prompted with."""
        earlier = shapes[:message]
        try:
            history, prompted = (self._render(earlier, marks, beside, prompt) for prompt in (False, True))
        except InvalidDocument:  # the template wants no conversation that ends there
            history = prompted = ""
        prompt = prompted.removeprefix(history)
        start = before.rfind(prompt) + len(prompt) if prompt in before and prompt else before.rfind(THOUGHT)
        return len(self._make_piece(before[start:]).text) if start >= 0 else 0


def find_boundaries(pieces: Sequence[str], tokens: Collection[str]) -> set[str]:
    """The tokens that a template puts between turns: those that its pieces begin with, white space apart.

    Tags of a thought are none: they belong to what the assistant says.
    """
    eligible = {token for token in tokens if token} - {THOUGHT, END_OF_THOUGHT}
    longest_first = "|".join(sorted(map(re.escape, eligible), key=len, reverse=True))
    leading = re.compile(rf"\s*({longest_first or '(?!)'})")
    found = set()
    for piece in pieces:
        position = 0
        while match := leading.match(piece, position):
            found.add(match[1])
            position = match.end()
    return found


def _escaped(value: object, escape: Callable[[str], str]) -> object:
    """The value with its strings, names of fields too, as `escape` spells them."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {escape(name): _escaped(item, escape) for name, item in value.items()}
    return [_escaped(item, escape) for item in value] if isinstance(value, list) else value


def _pads(bare: str, padded: str, is_first: bool, is_last: bool) -> tuple[str, str]:
    """What is left of the padding before and after a piece of the template's text."""
    for right, left in product([""] if is_first else RIGHT_PADS, [""] if is_last else LEFT_PADS):
        if padded == right + bare + left:
            return right, left
    raise InvalidDocument("ambiguous_rendering")
