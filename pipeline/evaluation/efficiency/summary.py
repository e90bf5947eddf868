"""How time and memory grow with the context."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2
from typing import Any

from pipeline.evaluation.suite import Record

GROWING = ("prefill_s", "decode_s", "cache_bytes")


def is_measured(record: Record) -> bool:
    """Whether memory sufficed."""
    return record["prefill_s"] is not None


def figures_of(record: Record) -> list[str]:
    """Seconds of reading, milliseconds of a new token and MiB of the cache, as a table has them."""
    if not is_measured(record):
        return ["out of memory", "", ""]
    figures = record["prefill_s"], 1000 * record["decode_s"], record["cache_bytes"] / 2**20
    return [f"{value:.{digits}f}" for value, digits in zip(figures, (3, 1, 2), strict=True)]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """`contexts`: the records by variant and length. `growth`: for each variant, what doubling the context multiplies
    a figure by, between each length and the next, and `to` that length; only between lengths that were both measured,
    on one device."""
    by_variant: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["length"]):
        by_variant.setdefault(record["variant"], []).append(record)
    order = list(dict.fromkeys(record["variant"] for record in records))
    return {
        "contexts": [record for variant in order for record in by_variant[variant]],
        "growth": {
            variant: [_per_doubling(a, b) for a, b in pairwise(by_variant[variant]) if _comparable(a, b)]
            for variant in order
        },
    }


def _comparable(shorter: Record, longer: Record) -> bool:
    return is_measured(shorter) and is_measured(longer) and shorter["device"] == longer["device"]


def _per_doubling(shorter: Record, longer: Record) -> dict[str, float]:
    doublings = log2(longer["length"] / shorter["length"])
    ratios = {name: (longer[name] / shorter[name]) ** (1 / doublings) for name in GROWING}
    return {"from": shorter["length"], "to": longer["length"], **ratios}
