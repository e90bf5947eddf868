"""What is a flag, and which one a mistyped one was most likely meant to be; also for settings and keys of files.

Standard library only, so that a wrong flag is reported before anything heavy is imported.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NoReturn

from pipeline.errors import EXIT_USER_ERROR

_LEAST_LIKENESS = 0.7


def looks_like_flag(argument: str) -> bool:
    """Whether it is a flag's name where a value could stand, too; `---`, `- x` and `-1` are values."""
    return re.match(r"--[A-Za-z]", argument) is not None


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `name`, or None where none is like it.

    Names with dots (--train.max_steps) are compared as a whole, and by what follows the last dot, so that a part of the
    path that was left out is found too.
    """
    scored = [(_likeness(name, candidate), candidate) for candidate in known]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, name))
    return best[1] if best[0] >= _LEAST_LIKENESS else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is like it."""
    nearest = find_nearest(name, known)
    return "" if nearest is None else f"; did you mean {nearest}?"


def _likeness(name: str, candidate: str) -> float:
    first, second = (text.lstrip("-").lower().replace("-", "_") for text in (name, candidate))
    whole = SequenceMatcher(None, first, second).ratio()
    # A little less than as a whole: --train.seed is nearer to --train.sed than --seed is.
    last = SequenceMatcher(None, first.rpartition(".")[2], second.rpartition(".")[2]).ratio() - 0.05
    return max(whole, last)


class Paragraphs(argparse.HelpFormatter):
    """Wraps each paragraph of a text on its own, and leaves indented ones, which are commands, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = [
            part.rstrip("\n") if part.startswith(" ") else super(Paragraphs, self)._fill_text(part, width, indent)
            for part in text.split("\n\n")
        ]
        return "\n\n".join(filled)


class ToolParser(argparse.ArgumentParser):
    """argparse for the tools of `python -m`: no abbreviations, and a flag that it does not know gets the nearest."""

    def __init__(self, module: str, summary: str, details: str) -> None:
        """`summary` stands before the arguments in --help, `details` after them."""
        super().__init__(prog=f"python -m {module}", description=summary, epilog=details, allow_abbrev=False,
                         formatter_class=Paragraphs)  # fmt: skip

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse does it."""
        found, unknown = self.parse_known_args(args)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            flag = unknown[0].partition("=")[0]
            self.error(f"{flag}: no such {'flag' if flag.startswith('-') else 'argument'}{suggestion(flag, known)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Ends with one line and exit code 2."""
        self.exit(EXIT_USER_ERROR, f"error: {message}; see --help\n")
