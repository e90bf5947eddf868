"""The ids of a byte-level BPE tokenizer.json, computed by `tiktoken` at several times the speed of `tokenizers`.

tiktoken merges any two neighbours whose bytes together are a token, lowest id first; `tokenizers` merges the pairs
that the file lists, first listed first. The two agree on every text if (a) the listed merges make tokens of rising
ids and (b) `tokenizers` turns each token's own text into that token: take the first step at which they part. Up to it
both made the same merges, so within the bytes of the token t that is now made by one of them, both did what they do
with t's text alone; by (b) that ends in a listed pair making t, which is the pair at hand. `tokenizer_check` tests (b)
for the whole vocabulary; here are (a) and the other conditions that can be read off the file.
"""

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import tiktoken

from data_prep.text_rules import AddedToken, TextRules, UnsupportedTokenizer

# Numbers of Unicode 16 and 17: digits for tiktoken's regex, not yet for the Digits pre-tokenizer of tokenizers 0.23.
_DISPUTED_DIGITS = re.compile("[\U00011de0-\U00011de9\U00016ff4-\U00016ff6]")
_FIRST_MISSING_BYTE = 0xF000_0000
# tiktoken looks for special tokens by a regex of them all, which may not be empty. None is ever allowed in a text.
_NO_SPECIAL_TOKENS = {"\x00no special tokens\x00": _FIRST_MISSING_BYTE - 1}


class FallbackNeeded(ValueError):
    """This text has to go to `tokenizers`."""


def _byte_alphabet() -> dict[str, str]:
    """GPT-2's printable stand-in of each byte -> that byte, both as characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(b): chr(b) for b in printable} | {chr(0x100 + i): chr(b) for i, b in enumerate(others)}


def plain_vocabulary(content: dict) -> dict[str, int]:
    """The model's tokens and ids without the added ones, as a parsed tokenizer.json spells them."""
    added = {token["content"] for token in content.get("added_tokens", [])}
    return {token: token_id for token, token_id in content["model"]["vocab"].items() if token not in added}


def check_merges(content: dict) -> None:
    """Condition (a) of the module's docstring.

    Raises:
        UnsupportedTokenizer: the ids of the merged tokens do not rise.
    """
    vocabulary = content["model"]["vocab"]
    merges = content["model"]["merges"]  # ["a", "b"], in older files "a b"; no byte-level token holds a blank
    ids = [vocabulary["".join(merge) if isinstance(merge, list) else merge.replace(" ", "")] for merge in merges]
    if np.any(np.diff(ids) < 0):
        raise UnsupportedTokenizer("merges that are not in the order of their tokens' ids")


def _read_ranks(content: dict) -> dict[bytes, int]:
    """bytes -> id; a byte without a token gets an id from _FIRST_MISSING_BYTE on."""
    model = content["model"]
    if model.get("type") != "BPE" or model.get("dropout") or model.get("byte_fallback"):
        raise UnsupportedTokenizer("a model other than byte-level BPE without dropout")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedTokenizer("a model with prefixes or suffixes of its words")
    vocabulary = plain_vocabulary(content)
    alphabet, spelling = _byte_alphabet(), "".join(vocabulary)
    if not alphabet.keys() >= set(spelling):
        raise UnsupportedTokenizer("a vocabulary that is not spelled in bytes")
    raw = spelling.translate(str.maketrans(alphabet)).encode("latin-1")  # at once: a worker waits for this
    ranks = {bytes([byte]): _FIRST_MISSING_BYTE + byte for byte in range(0x100)}
    start = 0
    for token, token_id in vocabulary.items():
        ranks[raw[start : start + len(token)]] = token_id
        start += len(token)
    if len(set(ranks.values())) < len(ranks):
        raise UnsupportedTokenizer("several tokens of one id")
    return ranks


class FastEncoder:
    """Encodes a text by tiktoken, or says that it cannot."""

    def __init__(self, content: dict, rules: TextRules, parse_special_tokens: bool) -> None:
        """Takes a parsed tokenizer.json and its rules.

        Raises:
            UnsupportedTokenizer: the model is of a kind that tiktoken cannot stand in for.
        """
        ranks = _read_ranks(content)
        self._rules = rules
        self._has_missing_bytes = max(ranks.values()) >= _FIRST_MISSING_BYTE
        self._encoding = tiktoken.Encoding(
            "tokenizer.json", pat_str=rules.pattern, mergeable_ranks=ranks, special_tokens=_NO_SPECIAL_TOKENS
        )
        self._added = {token.content: token for token in rules.added_tokens}
        # As `tokenizers` does: the leftmost, then the longest; special ones are found and then left as text.
        longest_first = sorted(self._added, key=len, reverse=True)
        self._find_added = re.compile("|".join(map(re.escape, longest_first))).finditer
        self._parsed = tuple(t.content for t in rules.added_tokens if parse_special_tokens or not t.special)

    def encode(self, text: str) -> np.ndarray:
        """uint32 ids [n] of the text, read-only.

        Raises:
            FallbackNeeded, or whatever tiktoken raises (a run of 100,000 blanks is too long for its regex engine).
        """
        if not text.isascii():
            if self._rules.nfc and not unicodedata.is_normalized("NFC", text):
                raise FallbackNeeded("the text has to be normalised")
            if self._rules.digits_first and _DISPUTED_DIGITS.search(text):
                raise FallbackNeeded("a character that is a digit for one library only")
        if any(content in text for content in self._parsed):
            ids = np.concatenate(list(self._encode_around_added_tokens(text)))
        else:
            ids = self._encode_words(text)
        if self._has_missing_bytes and len(ids) and ids.max() >= _FIRST_MISSING_BYTE:
            raise FallbackNeeded("a byte that is not in the vocabulary")
        return ids

    def _encode_words(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def _encode_around_added_tokens(self, text: str) -> Iterator[np.ndarray]:
        start = 0
        for match in self._find_added(text):
            token: AddedToken = self._added[match.group()]
            if token.content in self._parsed:
                yield self._encode_words(text[start : match.start()])
                yield np.array([token.id], np.uint32)
                start = match.end()
        yield self._encode_words(text[start:])
