"""Fewer cases than all combinations of settings."""

import itertools
import random
from collections.abc import Sequence
from typing import Any


def covering(settings: dict[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Named cases in which each value of each setting meets each of each other one."""
    everything = list(itertools.product(*settings.values()))
    random.Random(0).shuffle(everything)
    missing = {pair for values in everything for pair in itertools.combinations(enumerate(map(str, values)), 2)}
    chosen = {}
    while missing:
        best = max(everything, key=lambda v: len(missing & set(itertools.combinations(enumerate(map(str, v)), 2))))
        missing -= set(itertools.combinations(enumerate(map(str, best)), 2))
        chosen[" ".join(map(str, best))] = dict(zip(settings, best, strict=True))
    return chosen
