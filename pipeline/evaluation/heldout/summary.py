"""From records to numbers: totals over documents, their ratios and intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.attention.window import WindowSpec
from pipeline.config import Variant
from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.suite import Record

POOLED: tuple[Variant, ...] = ("compressive_max", "compressive_mean", "ahn")
"""Variants that try to win back what the window loses."""


@dataclass(frozen=True)
class Totals:
    """Sums over the scored tokens of one document (all its pieces), in nats, by row."""

    document: str
    tokens: int
    kl: dict[Row, float]
    nll: dict[Row, float]

    def recovered(self, row: Row) -> float | None:
        """Share of the KL that the window causes which `row` takes away again; None where it causes none."""
        return 1 - self.kl[row] / self.kl["window"] if self.kl["window"] > 0 else None


def sum_documents(records: Sequence[Record], *, with_control: bool = False) -> list[Totals]:
    """One a document, in the order of the records.

    Args:
        records: of suite `heldout`.
        with_control: with `foreign`, over the tokens that it was measured on; documents without any are left out.
    """
    pieces: dict[str, list[Record]] = {}
    for record in records:
        if not with_control or record["kl"].get("foreign"):
            pieces.setdefault(record["document"], []).append(record)
    return [_sum_pieces(name, group, with_control) for name, group in pieces.items()]


def _sum_pieces(document: str, pieces: Sequence[Record], with_control: bool) -> Totals:
    reaches = [len(p["kl"]["foreign"] if with_control else p["positions"]) for p in pieces]

    def sums(name: str) -> dict[Row, float]:
        rows = [row for row in pieces[0][name] if with_control or row != "foreign"]
        return {row: float(sum(np.sum(p[name][row][:n]) for p, n in zip(pieces, reaches, strict=True))) for row in rows}

    return Totals(document, sum(reaches), sums("kl"), sums("nll"))


def summarise(records: Sequence[Record], window: WindowSpec, seed: int = 0) -> dict[str, Any]:
    """KL in nats per token, perplexity per token, both over tokens past the window, by variant.

    `recovered`, where sinks + window was measured too and loses something: `share` of its KL that a variant takes away
    again, and `difference` of both in nats per token, with 95 % intervals (None for too few documents, and where a draw
    of documents loses nothing). `control`: see `summarise_control`. `rounding_kl` of the first piece, or None.
    """
    documents = sum_documents(records)
    kl, nll = _means(documents, "kl"), _means(documents, "nll")
    return {
        "kl": kl,
        "ppl": {variant: float(np.exp(value)) for variant, value in nll.items()},
        "recovered": {v: found for v in POOLED if v in kl and (found := _recovered(documents, v, seed)) is not None},
        "control": summarise_control(records, seed),
        "rounding_kl": next((record["rounding_kl"] for record in records if "rounding_kl" in record), None),
        "num_documents": len(documents),
        "num_tokens": sum(d.tokens for d in documents),
        "window": {
            "num_sink_tokens": window.num_sink_tokens,
            "window_size": window.window_size,
            "lossless_budget": window.lossless_budget,
        },
    }


def summarise_control(records: Sequence[Record], seed: int) -> dict[str, Any] | None:
    """The AHN with its own memory and with another document's, over the `num_tokens` that have both; None without.

    `kl` and `ppl` by row, as `summarise` has them. `recovered` of `ahn` and `foreign`. `difference`: the KL with
    another document's memory less that with the own, in nats per token, with its 95 % interval.
    """
    documents = sum_documents(records, with_control=True)
    if not documents:
        return None
    kl, nll = _means(documents, "kl"), _means(documents, "nll")
    rows = ("ahn", "foreign")
    return {
        "kl": kl,
        "ppl": {row: float(np.exp(value)) for row, value in nll.items()},
        "recovered": {row: found for row in rows if (found := _recovered(documents, row, seed)) is not None},
        "num_tokens": sum(d.tokens for d in documents),
        **_difference(documents, "foreign", "ahn", seed),
    }


def _means(documents: Sequence[Totals], name: Literal["kl", "nll"]) -> dict[Row, float]:
    sums = [d.kl if name == "kl" else d.nll for d in documents]
    tokens = sum(d.tokens for d in documents)
    return {row: sum(of_document[row] for of_document in sums) / tokens for row in sums[0]}


def _recovered(documents: Sequence[Totals], row: Row, seed: int) -> dict[str, Any] | None:
    if sum(d.kl.get("window", 0) for d in documents) <= 0:
        return None
    sums = np.array([(d.kl["window"], d.kl[row]) for d in documents], dtype=np.float64)
    return {
        "share": float(_recovered_share(sums.sum(0)[None])[0]),
        "share_ci95": _interval(sums, _recovered_share, seed),
        **_difference(documents, "window", row, seed),
    }


def _difference(documents: Sequence[Totals], worse: Row, better: Row, seed: int) -> dict[str, Any]:
    sums = np.array([(d.tokens, d.kl[worse], d.kl[better]) for d in documents], dtype=np.float64)
    tokens, of_worse, of_better = sums.sum(0).tolist()
    interval = _interval(sums, lambda totals: (totals[:, 1] - totals[:, 2]) / totals[:, 0], seed)
    return {"difference": (of_worse - of_better) / tokens, "difference_ci95": interval}


def _interval(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> list[float] | None:
    found = paired_interval(sums, statistic, seed=seed)
    return None if found is None else list(found)


def _recovered_share(totals: np.ndarray) -> np.ndarray:
    kept = np.full(len(totals), np.nan)
    return 1 - np.divide(totals[:, 1], totals[:, 0], out=kept, where=totals[:, 0] > 0)


@dataclass(frozen=True)
class PositionBin:
    """Means over the tokens whose distance past the lossless budget lies in [start, end), in nats, by row; NaN where
    the control does not have them all."""

    start: int
    end: int
    tokens: int
    kl: dict[Row, float]
    nll: dict[Row, float]

    @property
    def centre(self) -> float:
        return (self.start + self.end - 1) / 2


def bin_positions(records: Sequence[Record], window: WindowSpec, max_bins: int = 24) -> list[PositionBin]:
    """KL and NLL against the number of tokens evicted by then, in bins of equal width; empty ones are left out."""
    distance = np.concatenate([np.asarray(r["positions"]) for r in records]) - window.lossless_budget
    values = {
        name: {row: np.concatenate([_filled_up(r[name][row], r) for r in records]) for row in records[0][name]}
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


def _filled_up(values: Sequence[float], record: Record) -> np.ndarray:
    missing = len(record["positions"]) - len(values)
    return np.pad(np.asarray(values, dtype=np.float64), (0, missing), constant_values=np.nan)
