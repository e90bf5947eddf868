"""From records to numbers: totals over documents, their ratios and intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.attention.window import WindowSpec
from pipeline.config import Variant
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.suite import Record

POOLED: tuple[Variant, ...] = ("compressive_max", "compressive_mean", "ahn")
"""Variants that try to win back what the window loses."""


@dataclass(frozen=True)
class DocumentTotals:
    """Sums over the scored tokens of one document (all its pieces), in nats, by variant."""

    document: str
    tokens: int
    kl: dict[Variant, float]
    nll: dict[Variant, float]

    def recovered(self, variant: Variant) -> float | None:
        """Share of the KL that the window causes which `variant` takes away again; None where it causes none."""
        return 1 - self.kl[variant] / self.kl["window"] if self.kl["window"] > 0 else None


def sum_documents(records: Sequence[Record]) -> list[DocumentTotals]:
    """One row a document, in the order of the records."""
    pieces: dict[str, list[Record]] = {}
    for record in records:
        pieces.setdefault(record["document"], []).append(record)

    def sums(group: list[Record], name: str) -> dict[Variant, float]:
        return {variant: float(sum(np.sum(piece[name][variant]) for piece in group)) for variant in group[0][name]}

    return [
        DocumentTotals(name, sum(len(p["positions"]) for p in group), sums(group, "kl"), sums(group, "nll"))
        for name, group in pieces.items()
    ]


def summarise(records: Sequence[Record], window: WindowSpec, seed: int = 0) -> dict[str, Any]:
    """KL in nats per token, perplexity per token, both over tokens past the window, by variant.

    `recovered`, where sinks + window was measured too and loses something: `share` of its KL that a variant takes away
    again, and `difference` of both in nats per token, with 95 % intervals (None for one document, and where a draw of
    documents loses nothing).
    """
    documents = sum_documents(records)
    tokens = sum(d.tokens for d in documents)
    kl = {variant: sum(d.kl[variant] for d in documents) / tokens for variant in documents[0].kl}
    nll = {variant: sum(d.nll[variant] for d in documents) / tokens for variant in documents[0].nll}
    recovered = {}
    for variant in POOLED:
        if variant in kl and kl.get("window", 0) > 0:
            sums = np.array([(d.tokens, d.kl["window"], d.kl[variant]) for d in documents], dtype=np.float64)
            recovered[variant] = {
                "share": 1 - kl[variant] / kl["window"],
                "share_ci95": _interval(sums, _recovered_share, seed),
                "difference": kl["window"] - kl[variant],
                "difference_ci95": _interval(sums, lambda totals: (totals[:, 1] - totals[:, 2]) / totals[:, 0], seed),
            }
    return {
        "kl": kl,
        "ppl": {variant: float(np.exp(value)) for variant, value in nll.items()},
        "recovered": recovered,
        "num_documents": len(documents),
        "num_tokens": tokens,
        "window": {
            "num_sink_tokens": window.num_sink_tokens,
            "window_size": window.window_size,
            "lossless_budget": window.lossless_budget,
        },
    }


def _interval(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> list[float] | None:
    found = paired_interval(sums, statistic, seed=seed)
    return None if found is None or not np.isfinite(found).all() else list(found)


def _recovered_share(totals: np.ndarray) -> np.ndarray:
    kept = np.full(len(totals), np.nan)
    return 1 - np.divide(totals[:, 2], totals[:, 1], out=kept, where=totals[:, 1] > 0)


@dataclass(frozen=True)
class PositionBin:
    """Means over the tokens whose distance past the lossless budget lies in [start, end), in nats, by variant."""

    start: int
    end: int
    tokens: int
    kl: dict[Variant, float]
    nll: dict[Variant, float]

    @property
    def centre(self) -> float:
        return (self.start + self.end - 1) / 2


def bin_positions(records: Sequence[Record], window: WindowSpec, max_bins: int = 24) -> list[PositionBin]:
    """KL and NLL against the number of tokens evicted by then, in bins of equal width; empty ones are left out."""
    distance = np.concatenate([np.asarray(r["positions"]) for r in records]) - window.lossless_budget
    values = {
        name: {variant: np.concatenate([r[name][variant] for r in records]) for variant in records[0][name]}
        for name in ("kl", "nll")
    }
    span = int(distance.max()) + 1
    width = -(-span // max_bins)
    number = distance // width
    bins = []
    for index in np.unique(number):
        inside = number == index
        means = {name: {v: float(x[inside].mean()) for v, x in by.items()} for name, by in values.items()}
        start = int(index) * width
        bins.append(PositionBin(start, min(start + width, span), int(inside.sum()), **means))
    return bins
