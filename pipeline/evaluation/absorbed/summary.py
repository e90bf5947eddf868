"""From records to numbers: what each variant still knows of a document, by distance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import Variant
from pipeline.evaluation.needles.ratios import WITHOUT_LOSS, log_prob_difference, recovered, score, sum_answers
from pipeline.evaluation.suite import Record
from pipeline.evaluation.variant_style import foreign_row, has_control, is_foreign, own_variant

Row = str
"""A variant, or its control as variant_style.py names it: the same with the memory of another document."""


def summarise(records: Sequence[Record], variants: Sequence[Variant], windows: Sequence[int]) -> dict[str, Any]:
    """By variant, with its control after it where it has one, the numbers of `score` for each distance; `recovered`
    likewise.

    `controls`, by variant: for each distance the answers' log-probability with the own memory less that with another
    document's, in nats per token, `difference` with its 95 % interval.
    """
    rows: list[Row] = [row for v in variants for row in ((v, foreign_row(v)) if has_control(v, variants) else (v,))]
    sums = {row: sum_documents(records, row) for row in rows}
    found: dict[str, Any] = {"variants": {}, "recovered": {}, "controls": {}}
    for row in rows:
        found["variants"][row] = [{"windows": w, **score(at)} for w, at in zip(windows, sums[row], strict=True)]
        if row not in WITHOUT_LOSS and {"full", "window"} <= sums.keys():
            compared = zip(windows, sums["full"], sums["window"], sums[row], strict=True)
            found["recovered"][row] = [{"windows": w, **recovered(*at)} for w, *at in compared]
    for variant in (v for v in variants if has_control(v, variants)):
        compared = zip(windows, sums[variant], sums[foreign_row(variant)], strict=True)
        found["controls"][variant] = [{"windows": w, **log_prob_difference(*at)} for w, *at in compared]
    return found


def sum_documents(records: Sequence[Record], row: Row) -> np.ndarray:
    """Sums over the questions about each document at each distance, float64 [distances, documents, 5]."""
    asked = "foreign" if is_foreign(row) else "questions"
    of_variant = [record["distances"] for record in records if record["variant"] == own_variant(row)]
    sums = [[sum_answers(distance[asked]) for distance in distances] for distances in of_variant]
    return np.array(sums).transpose(1, 0, 2)
