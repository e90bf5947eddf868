"""How time and memory grow with the context."""

from collections.abc import Sequence
from itertools import pairwise
from math import log2
from typing import Any

from pipeline.evaluation.suite import Record

GROWING = ("prefill_s", "decode_s", "cache_bytes")


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """`contexts`: the records by variant and length. `growth`: for each variant, what doubling the context multiplies
    a figure by, between each length and the next, and `to` that length; none between lengths taken on two devices."""
    by_variant: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["length"]):
        by_variant.setdefault(record["variant"], []).append(record)
    order = list(dict.fromkeys(record["variant"] for record in records))
    return {
        "contexts": [record for variant in order for record in by_variant[variant]],
        "growth": {
            variant: [_per_doubling(a, b) for a, b in pairwise(by_variant[variant]) if a["device"] == b["device"]]
            for variant in order
        },
    }


def _per_doubling(shorter: Record, longer: Record) -> dict[str, float]:
    doublings = log2(longer["length"] / shorter["length"])
    ratios = {name: (longer[name] / shorter[name]) ** (1 / doublings) for name in GROWING}
    return {"from": shorter["length"], "to": longer["length"], **ratios}
