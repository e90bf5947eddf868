"""Tokens as text: what kind each is, and how gradients colour them."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

TokenClass = Literal["digits", "punctuation", "words", "whitespace", "other"]
CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)
"""`punctuation` has the other symbols too; `other`: special tokens and parts of a character."""
NOT_PROBED = "#e6e8eb"
SMALL, MIDDLE, LARGE = (0x9A, 0xD9, 0xA8), (0xFD, 0xF3, 0xC4), (0xF2, 0x8E, 0x82)
PERCENTILES = (5, 95)
REPLACEMENT = "\ufffd"


def words_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token's part of the text; some tokenizers drop a word's leading space when it comes first."""

    def decode(part: Sequence[int]) -> str:
        return tokenizer.decode(part, clean_up_tokenization_spaces=False)

    words = [decode(ids[:1])]
    for index in range(1, len(ids)):
        words.append(decode(ids[index - 1 : index + 1])[len(decode(ids[index - 1 : index])) :])
    return words


def classify(tokenizer: PreTrainedTokenizerBase, token: int) -> TokenClass:
    """The kind of one token; with a digit it is of `digits`, with a letter and no digit of `words`."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if token in tokenizer.all_special_ids or REPLACEMENT in text:
        return "other"
    if any(character.isdigit() for character in text):
        return "digits"
    if any(character.isalpha() for character in text):
        return "words"
    return "punctuation" if text.strip() else "whitespace"


def colours_of(values: Sequence[float]) -> list[str]:
    """Green for small, red for large: by the logarithm, from the 5th percentile to the 95th."""
    logs = np.log(np.maximum(np.asarray(values, dtype=np.float64), np.finfo(np.float64).tiny))
    low, high = np.percentile(logs, PERCENTILES)
    share = np.full(len(logs), 0.5) if high == low else np.clip((logs - low) / (high - low), 0, 1)
    return [_mix(float(x)) for x in share]


def _mix(share: float) -> str:
    start, end, within = (SMALL, MIDDLE, 2 * share) if share < 0.5 else (MIDDLE, LARGE, 2 * share - 1)
    return "#" + "".join(f"{round(a + (b - a) * within):02x}" for a, b in zip(start, end, strict=True))
