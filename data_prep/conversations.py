"""Conversations into token ids and a loss mask, with the model's own chat template.

The ids are those of transformers' `apply_chat_template`, with one deliberate choice: a special token that is spelled
out in a message, a tool or a document stays text, so that none can forge a turn. To know which text is the template's
own, the template is rendered a second time with marks in place of the texts (`chat_layout`); a conversation whose
rendering is not the template's text with the texts in between (each once, as they are or trimmed) is not used.
"""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from data_prep.chat_layout import MARK, Layout, LayoutFinder, Piece, find_boundaries, shape_of
from data_prep.chat_template import TEMPLATE_FILE
from data_prep.protected_tokenizer import ProtectedTokenizer
from data_prep.readers.invalid import InvalidDocument
from data_prep.readers.messages import Conversation
from data_prep.tokenization import TokenizerSpec
from pipeline.data.shard_format import DataError

LAYOUTS_KEPT = 1024
PROBE = [{"role": "user", "content": "one question"}, {"role": "assistant", "content": "an answer"}]
SYSTEM = {"role": "system", "content": "one rule"}
Span = tuple[int, int]


class ConversationEncoder:
    """Renders, encodes and masks conversations.

    Args:
        spec: the tokenizer, with its chat template.

    Raises:
        DataError: no chat template, or one that does not render a question and its answer unambiguously.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        if spec.chat_template is None:
            raise DataError(
                f"--tokenizer {spec.name}: conversations need a chat template, and neither {TEMPLATE_FILE} nor "
                f"tokenizer_config.json has one; use the tokenizer of an instruction-tuned model, or add one of these "
                f"files"
            )
        self._template = spec.chat_template
        content = spec.read()
        try:
            self._tokenizer = ProtectedTokenizer(content, self._find_boundaries(content))
            finder = LayoutFinder(self._template, self._tokenizer.escape, self._make_piece)
            self._layout = lru_cache(LAYOUTS_KEPT)(finder.find)
            self.encode(Conversation(PROBE))
        except InvalidDocument as error:
            raise DataError(
                f"the chat template of {self._template.where} cannot be used: a plain question and its answer give "
                f"{error.reason}; each content must appear once, as it is or trimmed"
            ) from error

    @property
    def template_sha256(self) -> str:
        """Of the template and the special tokens it may write (hex)."""
        return self._template.sha256

    def unread(self, conversation: Conversation) -> Iterator[str]:
        """What the conversation has beside its messages and this template does not render."""
        for name, value in (("tools", conversation.tools), ("documents", conversation.documents)):
            if value is not None and not self._template.mentions(name):
                yield name

    def encode(self, conversation: Conversation) -> tuple[np.ndarray, np.ndarray]:
        """Encodes one conversation, as `build_conversation` makes it.

        Returns:
            input_ids uint32 [n]; loss_mask uint8 [n], 1 for tokens that touch what the assistant wrote in a turn that
            is not excluded, its reasoning as far as it is rendered, or the special token that ends its turn. Where the
            template has generation tags, these decide.

        Raises:
            InvalidDocument: refused_by_template, ambiguous_rendering, no_supervised_token, special_token_in_text,
                reasoning_not_rendered (of the last turn), reserved_character (of the end of Unicode's last private
                plane).
        """
        beside = json.dumps([conversation.tools, conversation.documents], ensure_ascii=False)
        said = [value for message in conversation.messages for value in message.values()]
        if any(self._tokenizer.is_reserved(text) for text in (*said, beside)):
            raise InvalidDocument("reserved_character")
        rendered, tagged = self._template.render(conversation.messages, conversation.tools, conversation.documents)
        layout, texts = self._match(rendered, conversation.messages, beside)
        marked = layout.first.marked + "".join(
            text + slot.after.marked for text, slot in zip(texts, layout.slots, strict=True)
        )
        ids, offsets, is_special = self._tokenizer.encode(marked)
        _check_reasoning(layout, conversation)
        places = _places(layout, texts)
        if tagged is None:
            spans = _assistant_spans(layout, places, conversation)
        else:
            spans = _without_untrained(tagged, layout, places, conversation.untrained)
        mask = _touching(spans, offsets, is_special)
        if not mask.any():
            raise InvalidDocument("no_supervised_token")
        return ids, mask

    def _match(self, rendered: str, messages: list[dict[str, str]], beside: str) -> tuple[Layout, list[str]]:
        """The layout that gives this rendering, and the texts that fill it.

        A template may take the reasoning within an answer apart, or leave it out; only where the contents are not
        rendered as they stand is it looked at as a text of its own.
        """
        reason = "ambiguous_rendering"
        for split_reasoning in (False, True):
            shapes, texts = zip(*(shape_of(message, split_reasoning) for message in messages), strict=True)
            flat = [text for of_message in texts for text in of_message]
            try:
                layout = self._layout(shapes, beside)
            except InvalidDocument as error:
                reason = error.reason
                continue
            filled = [slot.fill(flat) for slot in layout.slots]
            parts = (text + slot.after.text for text, slot in zip(filled, layout.slots, strict=True))
            if rendered == layout.first.text + "".join(parts):
                return layout, filled
        raise InvalidDocument(reason)

    def _make_piece(self, escaped: str) -> Piece:
        unescape = self._tokenizer.unescape
        marked = unescape(self._tokenizer.translate(escaped))
        return Piece(unescape(escaped), marked, self._tokenizer.ending(escaped))

    def _find_boundaries(self, content: dict) -> set[str]:
        """The added tokens that the template puts between turns, flagged special or not.

        Raises:
            InvalidDocument: a plain question and its answer are not rendered unambiguously.
        """
        finder = LayoutFinder(self._template, str, lambda text: Piece(text, text, 0))
        tokens = [token["content"] for token in content["added_tokens"]]
        found: set[str] = set()
        for messages in (PROBE, [SYSTEM, *PROBE]):
            shapes = [shape_of(message, False)[0] for message in messages]
            marks = [MARK.format(number) for number in range(len(messages))]
            try:
                found |= find_boundaries(finder.split(shapes, marks, marks, "[null, null]")[1], tokens)
            except InvalidDocument:
                if messages is PROBE:
                    raise
        return found


def _places(layout: Layout, texts: list[str]) -> list[Span]:
    """Where each slot's text stands: first and last + 1 character."""
    places = []
    position = len(layout.first.text)
    for text, slot in zip(texts, layout.slots, strict=True):
        places.append((position, position + len(text)))
        position += len(text) + len(slot.after.text)
    return places


def _check_reasoning(layout: Layout, conversation: Conversation) -> None:
    """Refuses what would teach to answer at once: earlier turns may lose their reasoning, the last one may not.

    Raises:
        InvalidDocument: reasoning_not_rendered.
    """
    last = max((n for n, message in enumerate(conversation.messages) if message["role"] == "assistant"), default=None)
    if last is None or last in conversation.untrained or layout.shapes[last].reasoning == "none":
        return
    if not any(slot.is_reasoning and slot.message == last for slot in layout.slots):
        raise InvalidDocument("reasoning_not_rendered")


def _assistant_spans(layout: Layout, places: list[Span], conversation: Conversation) -> Iterator[Span]:
    """What the assistant wrote, each turn with its end: first and last + 1 character."""
    starts: dict[int, int] = {}
    for slot, (begin, end) in zip(layout.slots, places, strict=True):
        start = starts.setdefault(slot.message, begin - slot.opening)
        is_trained = conversation.messages[slot.message]["role"] == "assistant" and (
            slot.message not in conversation.untrained
        )
        if is_trained and not slot.is_reasoning:
            yield start, end + slot.after.ending


def _without_untrained(
    tagged: Iterable[Span], layout: Layout, places: list[Span], untrained: frozenset[int]
) -> Iterator[Span]:
    """The spans between generation tags but for those of turns that are excluded.

    Raises:
        InvalidDocument: ambiguous_rendering: a span over turns of both kinds.
    """
    for start, end in tagged:
        within = {
            slot.message
            for slot, place in zip(layout.slots, places, strict=True)
            if place[0] < end and place[1] > start
        }
        before = [slot.message for slot, place in zip(layout.slots, places, strict=True) if place[0] <= start]
        excluded = {message in untrained for message in within or before[-1:]}
        if len(excluded) > 1:
            raise InvalidDocument("ambiguous_rendering")
        if excluded != {True}:
            yield start, end


def _touching(spans: Iterable[Span], offsets: np.ndarray, is_special: np.ndarray) -> np.ndarray:
    """uint8 [n]: the tokens that overlap a span; a special one, which may take in white space, must begin in it."""
    mask = np.zeros(len(offsets), bool)
    for start, end in spans:
        touching = (offsets[:, 1] > start) & (offsets[:, 0] < end)
        mask |= touching & ~(is_special & (offsets[:, 0] < start))
    return mask.astype(np.uint8)
