"""Decides, once a run, whether tiktoken may stand in for `tokenizers`: only if their ids are the same everywhere."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from data_prep.fast_tokenizer import FastEncoder, check_merges, plain_vocabulary
from data_prep.surroundings import find_surroundings, read_surroundings
from data_prep.text_rules import UnsupportedTokenizer, read_text_rules, split_at_safe_cuts
from data_prep.tokenization import TokenizerSpec, load_reference

SAMPLE_CHARS = 1 << 18  # of all samples together
LONGEST_SAMPLE_CHARS = 1 << 14
# Numbers, contractions, line ends, blanks of all kinds, marks, scripts without spaces, control characters and
# characters of bytes that a vocabulary may lack, in every order of two; each pair is a text of its own, for tiktoken
# refuses some of them.
_ATOMS = (
    *("a", "Word", " the", "1", "2024", "'", "'s", "'RE", "\u017f", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000"),
    *("\u2028", "\x1c", "\x85", "\x00", "\x04", ".", "=>", "\u00bd", "\u0661", "\u2167", "\u00e9", "e\u0301", "\u0308"),
    *(
        "\u6f22\u5b57",
        "\u304b\u3099",
        "\ud55c",
        "\u1112\u1161",
        "\u0e01\u0e33",
        "\U0001f642",
        "\U00011de0",
        "\U000f0000",
    ),
)
_BATTERY = (
    "",
    *(f"{left}{right}{left}s 1{right}" for left in _ATOMS for right in _ATOMS),
    " " * 1_000_000,
    "\n" * 20_000 + "a",
    "a" * 20_000,
    "'" * 20_000,
)


@dataclass(frozen=True)
class BackendChoice:
    """`reason` says why not the fast one, or what it was checked on."""

    name: Literal["tiktoken", "tokenizers"]
    reason: str


def choose_backend(spec: TokenizerSpec, samples: Iterable[str]) -> BackendChoice:
    """Chooses "tiktoken" if the tokenizer's parts allow it, its vocabulary passes the test of `fast_tokenizer`'s
    docstring, and the ids of a fixed battery and of `samples` are those of `tokenizers`; else "tokenizers".

    Args:
        spec: the tokenizer.
        samples: texts of the run at hand; the start of each is used, SAMPLE_CHARS in all, and no more is drawn.
    """
    try:
        num_texts = _check(spec, samples)
    except UnsupportedTokenizer as error:
        return BackendChoice("tokenizers", str(error))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of tiktoken is no Exception
        return BackendChoice("tokenizers", f"tiktoken failed: {type(error).__name__}: {' '.join(str(error).split())}")
    return BackendChoice("tiktoken", f"whole vocabulary and {num_texts} texts checked: the ids of tokenizers")


def _check(spec: TokenizerSpec, samples: Iterable[str]) -> int:
    """The number of texts on which the ids were compared.

    Raises:
        UnsupportedTokenizer: what stands against tiktoken.
    """
    content = spec.read()
    rules = read_text_rules(content)
    surroundings = read_surroundings(content.get("post_processor"))
    check_merges(content)
    encoder = FastEncoder(content, rules, spec.special_tokens_in_text == "special")
    reference = load_reference(spec)
    _check_vocabulary(content, reference)
    if surroundings != find_surroundings(reference):
        raise UnsupportedTokenizer("a post-processor that does more than put tokens around a text")
    sampled = list(_cut_samples(samples))
    written_out = " a".join(token.content for token in rules.added_tokens)
    texts = (*_BATTERY, written_out, *sampled, "\n".join(sampled))
    return sum(_compare(text, encoder, reference) for text in texts)


def _compare(text: str, encoder: FastEncoder, reference: Tokenizer) -> bool:
    """Whether there was something to compare: a text that tiktoken refuses goes to `tokenizers` in the run, too.

    Raises:
        UnsupportedTokenizer: the ids differ.
    """
    try:
        ids = np.concatenate([encoder.encode(piece) for piece in split_at_safe_cuts([text])])
    except ValueError:
        return False
    expected = reference.encode_batch_fast([text], add_special_tokens=False)[0].ids
    if not np.array_equal(ids, np.array(expected, np.uint32)):
        raise UnsupportedTokenizer(f"tiktoken's ids differ on {text[:40]!r}")
    return True


def _cut_samples(samples: Iterable[str]) -> Iterator[str]:
    left = SAMPLE_CHARS
    for text in samples:
        yield text[: min(left, LONGEST_SAMPLE_CHARS)]
        left -= min(len(text), LONGEST_SAMPLE_CHARS)
        if left <= 0:
            return


def _check_vocabulary(content: dict, reference: Tokenizer) -> None:
    """Condition (b) of `fast_tokenizer`'s docstring; leaves `reference` as it was.

    Raises:
        UnsupportedTokenizer: a token that the merges do not make.
    """
    vocabulary = plain_vocabulary(content)
    parts = reference.normalizer, reference.pre_tokenizer, reference.model.ignore_merges
    reference.normalizer = None
    reference.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")  # no byte-level token holds a newline
    reference.model.ignore_merges = False
    ids = reference.encode_batch_fast(["\n".join(vocabulary)], add_special_tokens=False)[0].ids
    reference.normalizer, reference.pre_tokenizer, reference.model.ignore_merges = parts
    if ids != list(vocabulary.values()):
        raise UnsupportedTokenizer("tokens that the merges do not make")
