"""A long text in which suites hide sentences."""

import hashlib
import pydoc_data.topics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.suite import EvaluationInputs

SENTENCE_ENDS = (".", "!", "?")


def read_haystack(path: Path | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a UTF-8 text file, or of the Python language reference, without special tokens.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        text = "\n".join(pydoc_data.topics.topics.values())
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--haystack {path} cannot be read as UTF-8 text: {error}") from error
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


@dataclass(frozen=True)
class Woven:
    """A text with sentences in it: `tokens` int64 [T], and the places [start, end) of the sentences, in their order."""

    tokens: np.ndarray
    places: list[tuple[int, int]]


class Haystack:
    """The text, and where it may be cut: after the end of a line or of a sentence.

    Args:
        tokens: of the text.
        tokenizer: that they are of.
    """

    def __init__(self, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokens = np.asarray(tokens, dtype=np.int64)
        vocabulary, kinds = np.unique(self.tokens, return_inverse=True)
        texts = [tokenizer.decode([token]) for token in vocabulary.tolist()]
        ends_line = np.array([text.rstrip(" ").endswith("\n") for text in texts], dtype=bool)[kinds]
        ends_sentence = np.array([text.endswith(SENTENCE_ENDS) for text in texts], dtype=bool)[kinds]
        begins_word = np.array([text[:1].isspace() for text in texts], dtype=bool)[kinds]
        ends_sentence[:-1] &= begins_word[1:]
        self._cuts = np.flatnonzero(ends_line | ends_sentence) + 1

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokens.astype("<u4").tobytes()).hexdigest()

    def draw_start(self, num_tokens: int, generator: np.random.Generator) -> int:
        """Where `num_tokens` of the text begin: the beginning of a line or of a sentence, near a random place."""
        last = len(self.tokens) - num_tokens
        return self._near(int(generator.integers(last + 1)), 0, last, last)

    def weave(self, start: int, num_tokens: int, first: int, sentences: Sequence[Sequence[int]],
              depths: Sequence[float]) -> Woven:  # fmt: skip
        """`num_tokens` of the text from `start`, with sentences between its lines or sentences.

        Args:
            first: text tokens that come before any sentence.
            sentences: tokens of each.
            depths: of each in the text after those: 0 its beginning, 1 its end. What is put is the nearest cut that is
                at most an eighth of the text away, or else the place itself.
        """
        room = num_tokens - first
        cuts = [
            self._near(start + first + round(depth * room), start + first, start + num_tokens, room // 8) - start
            if depth < 1
            else num_tokens
            for depth in depths
        ]
        parts, places, taken, length = [], [(0, 0)] * len(sentences), 0, 0
        for number in sorted(range(len(sentences)), key=lambda i: cuts[i]):
            parts += [self.tokens[start + taken : start + cuts[number]], np.asarray(sentences[number], dtype=np.int64)]
            begin = length + cuts[number] - taken
            taken, length = cuts[number], begin + len(sentences[number])
            places[number] = begin, length
        parts.append(self.tokens[start + taken : start + num_tokens])
        return Woven(np.concatenate(parts), places)

    def _near(self, place: int, low: int, high: int, reach: int) -> int:
        """The cut in [low, high] nearest to `place`, or `place` where none is within `reach`."""
        allowed = self._cuts[np.searchsorted(self._cuts, low) : np.searchsorted(self._cuts, high, side="right")]
        if len(allowed) == 0:
            return place
        nearest = int(allowed[np.abs(allowed - place).argmin()])
        return nearest if abs(nearest - place) <= reach else place


def make_haystack(inputs: EvaluationInputs, needed: int, flag: str) -> Haystack:
    """The text of --haystack, or as many repetitions of the Python language reference as `needed` tokens take, and one
    more, so that excerpts of any length may begin anywhere in it.

    Raises:
        UserError: the text has fewer tokens than `flag` needs.
    """
    path, tokens = inputs.config.haystack, inputs.haystack
    if path is not None and len(tokens) < needed:
        raise UserError(
            f"--haystack {path} has {len(tokens):,} tokens, {flag} needs {needed:,}: give a longer text, or shorter "
            f"ones there"
        )
    if len(tokens) == 0:
        raise UserError("the model's tokenizer makes no token of Python's language reference: it is not for its text")
    return Haystack([*tokens] * (1 - -needed // len(tokens)) if path is None else tokens, inputs.tokenizer)
