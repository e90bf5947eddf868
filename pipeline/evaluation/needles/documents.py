"""Prompts of exactly so many tokens: text with needles in it, a question, and where its answer begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.haystack import Haystack
from pipeline.evaluation.needles.answers import mentions
from pipeline.evaluation.needles.tasks import NeedleTexts


@dataclass(frozen=True)
class EncodedAnswer:
    """`question` [Q] and `answer` [A], tokens that follow each other; answer i is `answer[spans[i]]`, with the
    separator before it where there is one."""

    question: list[int]
    answer: list[int]
    spans: tuple[slice, ...]


@dataclass(frozen=True)
class EncodedTexts:
    """The texts of a prompt in tokens. `beginning`: special tokens that a text begins with. `named_by[i]`: numbers of
    the sentences that name answer i, where the question counts as the last one."""

    beginning: list[int]
    sentences: list[list[int]]
    asked: EncodedAnswer
    named_by: tuple[tuple[int, ...], ...]

    def least_length(self, num_sink_tokens: int) -> int:
        """Tokens of the shortest prompt whose sentences all lie past the sinks."""
        first = max(num_sink_tokens, len(self.beginning))
        return first + sum(map(len, self.sentences)) + len(self.asked.question)


@dataclass(frozen=True)
class NeedlePrompt:
    """`tokens` [length] end where the answer begins; sentence j is the tokens [start, end) of `places[j]`, and the last
    place is the question's. Answer i is named at the places of `named_by[i]`."""

    tokens: list[int]
    places: tuple[tuple[int, int], ...]
    named_by: tuple[tuple[int, ...], ...]
    asked: EncodedAnswer

    def evicted(self, window: WindowSpec) -> tuple[bool, ...]:
        """For each answer, whether all that names it has left the window, and no token of that is a sink, for the query
        that gives the answer's first token, which is the prompt's last."""
        query = np.array(len(self.tokens) - 1)
        is_visible = [window.visible(query, np.arange(*place)).any() for place in self.places]
        return tuple(not any(is_visible[number] for number in numbers) for numbers in self.named_by)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, question: str, answers: Sequence[str], separator: str = ","
) -> EncodedAnswer:
    """A question on a line of its own, and its answers after it, a blank before each and `separator` between them."""

    def encode(num_answers: int) -> list[int]:
        joined = separator.join(f" {answer}" for answer in answers[:num_answers])
        return tokenizer(f"\n{question}{joined}", add_special_tokens=False).input_ids

    bounds = [len(encode(count)) for count in range(len(answers) + 1)]
    tokens, first = encode(len(answers)), bounds[0]
    spans = tuple(slice(a - first, b - first) for a, b in pairwise(bounds))
    return EncodedAnswer(tokens[:first], tokens[first:], spans)


def encode_sentence(tokenizer: PreTrainedTokenizerBase, sentence: str) -> list[int]:
    """A sentence on a line of its own."""
    return tokenizer(f"\n{sentence}\n", add_special_tokens=False).input_ids


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: NeedleTexts) -> EncodedTexts:
    sentences = [encode_sentence(tokenizer, sentence) for sentence in texts.sentences]
    asked = encode_answer(tokenizer, texts.question, texts.answers, texts.separator)
    said = (*texts.sentences, texts.question)
    named_by = tuple(tuple(j for j, text in enumerate(said) if mentions(text, answer)) for answer in texts.answers)
    return EncodedTexts(tokenizer("").input_ids, sentences, asked, named_by)


def build_prompt(
    haystack: Haystack, encoded: EncodedTexts, depths: Sequence[float], length: int, num_sink_tokens: int,
    generator: np.random.Generator,
) -> NeedlePrompt:  # fmt: skip
    """A prompt of `length` tokens, at least `encoded.least_length`, from a random part of the text.

    `depths`: of each sentence in the text past the sinks.
    """
    beginning, asked = encoded.beginning, encoded.asked
    num_tokens = length - len(beginning) - sum(map(len, encoded.sentences)) - len(asked.question)
    first = max(0, num_sink_tokens - len(beginning))
    start = haystack.draw_start(num_tokens, generator)
    woven = haystack.weave(start, num_tokens, first, encoded.sentences, depths)
    places = [(a + len(beginning), b + len(beginning)) for a, b in woven.places]
    places.append((length - len(asked.question), length))
    return NeedlePrompt([*beginning, *woven.tokens.tolist(), *asked.question], tuple(places), encoded.named_by, asked)
