"""From records to numbers: what each variant finds of needles in the window and of evicted ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import NeedleTask, Variant
from pipeline.evaluation.needles.ratios import WITHOUT_LOSS, recovered, score, sum_answers
from pipeline.evaluation.suite import Record

PLACES = {"evicted": True, "in_window": False}


def summarise(records: Sequence[Record], variants: Sequence[Variant], tasks: Sequence[NeedleTask]) -> dict[str, Any]:
    """By variant, of `evicted` needles and of those `in_window`: how many, the numbers of `score`, over all tasks and
    of each. `recovered`, by variant: of evicted needles."""
    of_variants = {v: [record for record in records if record["variant"] == v] for v in variants}
    found: dict[str, Any] = {"variants": {}, "recovered": {}}
    for variant, of_variant in of_variants.items():
        found["variants"][variant] = {
            place: {
                **_score(of_variant, evicted),
                "tasks": {task: _score([r for r in of_variant if r["task"] == task], evicted) for task in tasks},
            }
            for place, evicted in PLACES.items()
        }
        if variant not in WITHOUT_LOSS and {"full", "window"} <= of_variants.keys():
            compared = (sum_prompts(of_variants[v], evicted=True) for v in ("full", "window", variant))
            found["recovered"][variant] = recovered(*compared)
    return found


def sum_prompts(records: Sequence[Record], evicted: bool) -> np.ndarray:
    """Sums over those needles of each prompt that are evicted, or are not, float64 [P, 5]."""
    sums = [sum_answers(needle for needle in record["needles"] if needle["evicted"] is evicted) for record in records]
    return np.array(sums)


def _score(records: Sequence[Record], evicted: bool) -> dict[str, Any]:
    sums = sum_prompts(records, evicted)
    return {"num_needles": int(sums[:, 0].sum()), **score(sums)}
