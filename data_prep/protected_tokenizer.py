"""Encodes text in which only marked special tokens are special: a spelled-out one stays text.

Each special token of the tokenizer is renamed to a run of one private-use character, as long as its own name. What
the template writes is translated to these names, what a document spells is not. The text is still encoded in one
piece, so that every other rule of the tokenizer (white space beside a token, the first word's prefix) holds; and all
positions stay what they were.
"""

import json
import re
from collections.abc import Collection

import numpy as np
from tokenizers import Tokenizer

from data_prep.readers.invalid import InvalidDocument
from pipeline.data.shard_format import DataError

FIRST_NAME = 0x10F000  # the end of the last private-use plane; more names than fit in there begin further down
FIRST_PRIVATE_PLANE, LAST_NAME = 0xF0000, 0x10FFFF


class ProtectedTokenizer:
    """The tokenizer of a parsed tokenizer.json, without the tokens that its post-processor would add.

    Args:
        content: the parsed file.
        boundaries: added tokens that are protected though they are not flagged special.

    Raises:
        DataError: more special tokens than there are private characters.
    """

    def __init__(self, content: dict, boundaries: Collection[str] = ()) -> None:
        original = {token["content"]: token["id"] for token in content["added_tokens"]}
        protected = [token["content"] for token in content["added_tokens"] if token["special"]]
        protected += [name for name in original if name in boundaries and name not in protected]
        first = min(FIRST_NAME, LAST_NAME - len(protected))
        if first < FIRST_PRIVATE_PLANE:
            raise DataError(
                f"the tokenizer has {len(protected):,} special tokens; conversations can do with "
                f"{LAST_NAME - FIRST_PRIVATE_PLANE:,}"
            )
        self._names = {name: chr(first + n) * len(name) for n, name in enumerate(protected)}
        self._break = chr(first + len(protected))
        longest_first = sorted(map(re.escape, self._names), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or "(?!)")
        self._ending = re.compile(rf"\s*(?:{self._special.pattern})")
        self._reserved = re.compile(f"[{chr(first)}-{self._break}]")
        renamed = [token | {"content": self._names.get(token["content"], token["content"])}
                   for token in content["added_tokens"]]  # fmt: skip
        changes = {"added_tokens": renamed, "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = Tokenizer.from_str(json.dumps(content | changes))
        self._set_up_ids(original, content["model"].get("unk_token"))

    def _set_up_ids(self, original: dict[str, int], unknown: str | None) -> None:
        """Renamed tokens may have other ids in the tokenizer than in the model."""
        renamed = {self._tokenizer.token_to_id(self._names.get(name, name)): id_ for name, id_ in original.items()}
        size = max([*original.values(), *renamed, self._tokenizer.get_vocab_size()]) + 1
        self._original_id = np.arange(size, dtype=np.uint32)
        self._original_id[list(renamed)] = list(renamed.values())
        # The unknown token does not count: text may well hold what no other token covers.
        counted = [name for name in self._names if name != unknown]
        self._is_special = np.zeros(size, bool)
        self._is_special[[original[name] for name in counted]] = True
        self._marked = re.compile("|".join(self._names[name] for name in counted) or "(?!)")

    def translate(self, literal: str) -> str:
        """The literal with its special tokens marked; positions stay."""
        return self._special.sub(lambda found: self._names[found[0]], literal)

    def escape(self, text: str) -> str:
        """The text with a private character in each special token, so that `translate` leaves it alone.

        Raises:
            InvalidDocument: special_token_in_text: a token of one character.
        """
        while found := self._special.search(text):
            if found.end() - found.start() < 2:
                raise InvalidDocument("special_token_in_text")
            text = text[: found.start() + 1] + self._break + text[found.start() + 1 :]
        return text

    def unescape(self, text: str) -> str:
        """Undoes `escape`."""
        return text.replace(self._break, "")

    def ending(self, literal: str) -> int:
        """Length of the special token (with white space before it) that the unmarked literal begins with, or 0."""
        found = self._ending.match(literal)
        return found.end() if found else 0

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encodes text that `translate` has marked.

        Returns:
            ids uint32 [n]; offsets int64 [n, 2] (first and last + 1 character); is_special bool [n].

        Raises:
            InvalidDocument: special_token_in_text: the tokenizer makes special tokens of plain text, or the reverse.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = self._original_id[np.array(encoding.ids, np.int64)]
        is_special = self._is_special[ids]
        if is_special.sum() != len(self._marked.findall(text)):
            raise InvalidDocument("special_token_in_text")
        return ids, np.array(encoding.offsets, np.int64).reshape(-1, 2), is_special

    def is_reserved(self, text: str) -> bool:
        """Whether a document's text holds a character of the private names."""
        return not text.isascii() and self._reserved.search(text) is not None
