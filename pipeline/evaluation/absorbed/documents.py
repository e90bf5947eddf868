"""Documents of facts in a long text, the text after them, and questions about the facts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.haystack import Haystack
from pipeline.evaluation.needles.documents import EncodedAnswer, encode_answer, encode_sentence
from pipeline.evaluation.needles.words import NAMES, draw, draw_number

DIGITS = 5


@dataclass(frozen=True)
class AbsorbedDocument:
    """`tokens`: the document, its facts at `places` [start, end), all past the sinks; `filler` goes on after it.
    `questions[i]` asks for fact i."""

    tokens: list[int]
    places: tuple[tuple[int, int], ...]
    filler: list[int]
    questions: tuple[EncodedAnswer, ...]


@dataclass(frozen=True)
class EncodedFacts:
    """Facts before they are in a text. `beginning`: special tokens that a text begins with."""

    beginning: list[int]
    sentences: list[list[int]]
    questions: tuple[EncodedAnswer, ...]

    def document_length(self, window: WindowSpec) -> int:
        """Tokens: sinks and a window, or more where the facts take more than that."""
        first = max(window.num_sink_tokens, len(self.beginning))
        return max(window.lossless_budget, first + sum(map(len, self.sentences)))

    def haystack_tokens(self, window: WindowSpec, num_filler: int) -> int:
        """Tokens of the text in the document and after it."""
        return self.document_length(window) - sum(map(len, [self.beginning, *self.sentences])) + num_filler


def draw_facts(tokenizer: PreTrainedTokenizerBase, num_facts: int, generator: np.random.Generator) -> EncodedFacts:
    """Facts about different people."""
    names = draw(NAMES, num_facts, generator)
    codes = [draw_number(DIGITS, generator) for _ in names]
    sentences = [
        encode_sentence(tokenizer, f"The code of {name} is {code}.") for name, code in zip(names, codes, strict=True)
    ]
    questions = tuple(
        encode_answer(tokenizer, f"What is the code of {name}? The code of {name} is", [code])
        for name, code in zip(names, codes, strict=True)
    )
    return EncodedFacts(tokenizer("").input_ids, sentences, questions)


def build_document(
    haystack: Haystack, facts: EncodedFacts, window: WindowSpec, num_filler: int, generator: np.random.Generator
) -> AbsorbedDocument:
    """A document from a random part of the text, which goes on for `num_filler` tokens after it."""
    total = facts.haystack_tokens(window, num_filler)
    start, num_inside = haystack.draw_start(total, generator), total - num_filler
    first, num_facts = max(0, window.num_sink_tokens - len(facts.beginning)), len(facts.sentences)
    woven = haystack.weave(start, num_inside, first, facts.sentences, _spread(num_facts))
    places = tuple((a + len(facts.beginning), b + len(facts.beginning)) for a, b in woven.places)
    filler = haystack.tokens[start + num_inside : start + total].tolist()
    return AbsorbedDocument([*facts.beginning, *woven.tokens.tolist()], places, filler, facts.questions)


def _spread(count: int) -> Sequence[float]:
    """Depths of `count` facts, evenly over the document."""
    return [(i + 0.5) / count for i in range(count)]
