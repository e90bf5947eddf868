"""What facts are made of: common words, so that most are one token."""

import string
from typing import TypeVar

import numpy as np

Word = TypeVar("Word")


def _words(text: str) -> list[str]:
    return text.split()


NOUNS = _words(
    "anchor apple arrow basket beach bell bird boat bottle branch bread bridge brush butter button camera candle "
    "castle chair cheese clock cloud coat coin copper corn cotton desk dress drum eagle engine feather fence field "
    "finger fish flag flower forest garden glass glove grass hammer harbor hat honey horse island jacket kettle key "
    "kitchen knife ladder lake lamp leaf lemon lion map market mirror moon mountain needle ocean onion orange paint "
    "paper pencil piano pillow planet plate pocket potato queen rabbit rice ring river road rock roof rope rose salt "
    "sand school seed shell ship shirt silver snow soap spoon spring stone storm sugar sword table tiger tower train "
    "tree valley violin wagon wheel window winter wolf"
)
NAMES = _words(
    "Adam Alan Albert Alice Amanda Amy Andrew Angela Anna Anthony Arthur Barbara Benjamin Betty Brian Carl Carol "
    "Catherine Charles Christine Daniel David Deborah Diana Donald Dorothy Edward Elizabeth Emily Emma Eric Frances "
    "Frank George Grace Harold Helen Henry Jack Jacob James Jane Jason Jennifer Jessica John Joseph Joshua Julia "
    "Karen Keith Kevin Laura Lawrence Lisa Louis Margaret Maria Mark Martha Martin Mary Matthew Michael Nancy Nathan "
    "Oliver Olivia Patrick Paul Peter Philip Rachel Ralph Raymond Rebecca Richard Robert Roger Rose Ruth Samuel Sarah "
    "Scott Sophia Stephen Susan Teresa Thomas Timothy Victor Victoria Vincent Virginia Walter William"
)
CONSONANTS = [letter for letter in string.ascii_uppercase if letter not in "AEIOUY"]


def draw(words: list[Word], count: int, generator: np.random.Generator) -> list[Word]:
    """`count` distinct ones."""
    return [words[i] for i in generator.permutation(len(words))[:count]]


def draw_number(digits: int, generator: np.random.Generator) -> str:
    """A number of so many digits."""
    return str(generator.integers(10 ** (digits - 1), 10**digits))


def draw_variables(count: int, generator: np.random.Generator) -> list[str]:
    """Names of variables: two consonants, which is no word."""
    return draw([a + b for a in CONSONANTS for b in CONSONANTS if a != b], count, generator)
