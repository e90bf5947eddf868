"""What a tokenizer.json does to a text before its vocabulary comes in, for the layouts whose behaviour is known.

Two things rest on that knowledge: one regular expression that cuts a text into the tokenizer's words, and the places
where a text may be cut in two without changing one id.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PIECE_CHARS = 1 << 15

# Alternatives in front of the last two are grouped: the regex engine then runs them as one automaton, and only the
# look-ahead of the white space takes its slow path.
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+"
_BLANKS = r"\s+(?!\S)|\s+"
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER_CASE = "'s|'t|'re|'ve|'m|'ll|'d"
_SPLIT_HEADS = tuple(
    rf"{_ANY_CASE}|{_LETTERS}|{numbers}|{_OTHERS}[\r\n]*|\s*[\r\n]+" for numbers in (r"\p{N}", r"\p{N}{1,3}")
)
_SPLIT_PATTERNS = {f"{head}|{_BLANKS}": f"(?:{head})|{_BLANKS}" for head in _SPLIT_HEADS}  # Qwen2, Llama-3
_GPT2_PATTERN = rf"(?:{_LOWER_CASE}| ?\p{{L}}+| ?\p{{N}}+|{_OTHERS})|{_BLANKS}"
# GPT-2's words within the stretches between single digits: a number is a word of its own, without a space in front,
# and white space that ends at a number is at the end of its stretch, so nothing of it is left for the next word.
_DIGITS_PATTERN = rf"(?:{_LOWER_CASE}| ?\p{{L}}+|\p{{N}}|{_OTHERS})|\s+(?![^\s\p{{N}}])|\s+"

# A letter or number | white space or ideographic comma, full stop. Letters and blanks are those of every Unicode
# version: ASCII, Cyrillic, kana, CJK, Hangul.
_SAFE_CUT = re.compile(
    "[0-9A-Za-z\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3](?=[\t\n\r \u3001\u3002\uff0c])"
)


class UnsupportedTokenizer(ValueError):
    """The tokenizer.json holds a part whose behaviour is not known here; the message says which."""


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the raw text, before all else."""

    content: str
    id: int
    special: bool


@dataclass(frozen=True)
class TextRules:
    """`pattern` cuts a text into words; `digits_first`: the Digits pre-tokenizer looks at it before; `nfc`: the text
    is normalised to NFC before that; `added_tokens` are found in it first of all.
    """

    pattern: str
    digits_first: bool
    nfc: bool
    added_tokens: tuple[AddedToken, ...]


def read_text_rules(content: dict) -> TextRules:
    """The rules of a parsed tokenizer.json.

    Raises:
        UnsupportedTokenizer: its normalizer, pre-tokenizer or added tokens are of an unknown kind.
    """
    normalizer = content.get("normalizer")
    if normalizer not in (None, {"type": "NFC"}):
        raise UnsupportedTokenizer(f"normalizer {normalizer['type']}")
    pattern = _word_pattern(content.get("pre_tokenizer"))
    added = content.get("added_tokens", [])
    flags = ("single_word", "lstrip", "rstrip")
    if any(token[flag] for token in added for flag in flags) or any(not token["content"] for token in added):
        raise UnsupportedTokenizer(f"an added token with one of {', '.join(flags)}, or empty")
    # Those with normalized=true are looked for in a second pass, in the normalised text.
    if len({token["normalized"] for token in added}) > 1 or (normalizer and any(t["normalized"] for t in added)):
        raise UnsupportedTokenizer("added tokens that are looked for in normalised text")
    if any(_SAFE_CUT.search(token["content"]) for token in added):
        raise UnsupportedTokenizer("an added token of several words")
    tokens = tuple(AddedToken(token["content"], token["id"], token["special"]) for token in added)
    return TextRules(pattern, pattern == _DIGITS_PATTERN, normalizer is not None, tokens)


def _word_pattern(pre_tokenizer: dict | None) -> str:
    """The pattern of one of: ByteLevel; Digits, ByteLevel; Split by a known pattern, ByteLevel without its regex."""
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    kinds = [part["type"] for part in parts]
    known = kinds in (["ByteLevel"], ["Digits", "ByteLevel"], ["Split", "ByteLevel"])
    if known and not parts[-1]["add_prefix_space"] and parts[-1].get("use_regex", True) == (kinds[0] != "Split"):
        if kinds[0] == "ByteLevel":
            return _GPT2_PATTERN
        if kinds[0] == "Digits" and parts[0]["individual_digits"]:
            return _DIGITS_PATTERN
        regex = parts[0].get("pattern", {}).get("Regex")
        if regex in _SPLIT_PATTERNS and parts[0]["behavior"] == "Isolated" and not parts[0]["invert"]:
            return _SPLIT_PATTERNS[regex]
    raise UnsupportedTokenizer(f"pre-tokenizer {', '.join(kinds) or 'none'}, or its settings")


def split_at_safe_cuts(chunks: Iterable[str], piece_chars: int = PIECE_CHARS) -> Iterator[str]:
    """Cuts the text that `chunks` make up into pieces of `piece_chars` and a little more, whose ids, one after the
    other, are the text's ids for every tokenizer that `read_text_rules` knows.

    A cut lies between a letter or number x and white space or an ideographic comma or stop y. Why no id changes:
    no alternative of the patterns runs from a letter or number on into a y, so a word ends and another starts there
    in the whole text too. The right piece's words are the same because no pattern looks behind. The left piece's
    are the same because the only look-ahead reads one character past a run of white space, and x, which is none,
    comes after every run of the left piece. NFC composes neither y with x nor across y, Digits looks at single
    characters, and no added token holds such an xy.

    Memory is bounded by the longest chunk, two pieces and the longest stretch without a cut; time is linear.
    """
    parts: list[str] = []
    size, wanted = 0, 2 * piece_chars
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size >= wanted:
            text, start = "".join(parts), 0
            while cut := _SAFE_CUT.search(text, start + piece_chars):
                yield text[start : cut.end()]
                start = cut.end()
            parts = [text[start:]]
            size = len(parts[0])
            wanted = max(2 * piece_chars, 2 * size)  # twice the size, so that no stretch is searched again and again
    yield "".join(parts)
