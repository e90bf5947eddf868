"""From records to numbers: totals over documents, their ratios and intervals."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.attention.window import WindowSpec
from pipeline.config import Variant, parse_variant
from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.suite import Record
from pipeline.evaluation.variant_style import foreign_row, is_foreign, own_variant

NOT_RECOVERING: tuple[Variant, ...] = ("full", "full_yarn", "window", "memory_off")
"""Variants that do not try to win back what the window loses."""


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


def sum_documents(records: Sequence[Record], *, control: Row | None = None, first_position: int = 0) -> list[Totals]:
    """One a document, in the order of the records; documents without a token are left out.

    Args:
        records: of suite `heldout`.
        control: a row that is a variant's control: with it, over the tokens that it was measured on. None: without any.
        first_position: only tokens from this position in their text on.
    """
    pieces: dict[str, list[Record]] = {}
    for record in records:
        part = _summed_part(record, control, first_position)
        if part.start < part.stop:
            pieces.setdefault(record["document"], []).append(record)
    return [_sum_pieces(name, group, control, first_position) for name, group in pieces.items()]


def _summed_part(record: Record, control: Row | None, first_position: int) -> slice:
    positions = record["positions"]
    end = len(positions) if control is None else len(record["kl"].get(control, ()))
    return slice(bisect_left(positions, first_position), end)


def _sum_pieces(document: str, pieces: Sequence[Record], control: Row | None, first_position: int) -> Totals:
    parts = [_summed_part(piece, control, first_position) for piece in pieces]

    def sums(name: str) -> dict[Row, float]:
        rows = [row for row in pieces[0][name] if row == control or not is_foreign(row)]
        return {row: float(sum(np.sum(p[name][row][n]) for p, n in zip(pieces, parts, strict=True))) for row in rows}

    return Totals(document, sum(part.stop - part.start for part in parts), sums("kl"), sums("nll"))


def summarise(
    records: Sequence[Record], window: WindowSpec, largest_budget: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """What `_summarise_documents` has of all tokens past sinks + window, and:

    `past_largest_budget`, the same of those past the most tokens that one of the variants keeps, from
    `first_position` on, where that is more than sinks + window; else None. `control` of `ahn` and `controls` of the
    variants that retain tokens, by variant: see `summarise_control`. `bytes` by variant: see variant_bytes.py.
    `rounding_kl` of the first piece, or None.

    Args:
        records: of suite `heldout`, at least one.
        window: sinks and window.
        largest_budget: of the variants. Default: that of `window`.
        seed: of the intervals.
    """
    past = None
    if largest_budget is not None and largest_budget > window.lossless_budget:
        documents = sum_documents(records, first_position=largest_budget)
        past = {"first_position": largest_budget, **_summarise_documents(documents, seed)}
    variants = [row for row in records[0]["kl"] if not is_foreign(row)]
    controls = {variant: summarise_control(records, variant, seed) for variant in variants}
    return {
        **_summarise_documents(sum_documents(records), seed),
        "past_largest_budget": past,
        "control": controls.pop("ahn", None),
        "controls": {variant: found for variant, found in controls.items() if found is not None},
        "bytes": next((record["bytes"] for record in records if "bytes" in record), None),
        "rounding_kl": next((record["rounding_kl"] for record in records if "rounding_kl" in record), None),
        "window": {
            "num_sink_tokens": window.num_sink_tokens,
            "window_size": window.window_size,
            "lossless_budget": window.lossless_budget,
        },
    }


def _summarise_documents(documents: Sequence[Totals], seed: int) -> dict[str, Any]:
    """KL in nats per token and perplexity per token by variant; of how many documents and tokens.

    `recovered`, where sinks + window was measured too and loses something: see `_recovered`.
    """
    kl, nll = _means(documents, "kl"), _means(documents, "nll")
    recovering = [row for row in kl if row not in NOT_RECOVERING]
    return {
        "kl": kl,
        "ppl": {variant: float(np.exp(value)) for variant, value in nll.items()},
        "recovered": {v: found for v in recovering if (found := _recovered(documents, v, seed)) is not None},
        "num_documents": len(documents),
        "num_tokens": sum(d.tokens for d in documents),
    }


def summarise_control(records: Sequence[Record], variant: Variant, seed: int) -> dict[str, Any] | None:
    """A variant with its own memory and with another document's, over the `num_tokens` that have both; None without.

    `kl` and `ppl` by row, as `summarise` has them. `recovered` of the variant and of its control. `difference`: the KL
    with another document's memory less that with the own, in nats per token, with its 95 % interval.
    """
    foreign = foreign_row(variant)
    documents = sum_documents(records, control=foreign)
    if not documents:
        return None
    kl, nll = _means(documents, "kl"), _means(documents, "nll")
    rows = (variant, foreign)
    return {
        "kl": kl,
        "ppl": {row: float(np.exp(value)) for row, value in nll.items()},
        "recovered": {row: found for row in rows if (found := _recovered(documents, row, seed)) is not None},
        "num_tokens": sum(d.tokens for d in documents),
        **_difference(documents, foreign, variant, seed),
    }


def _means(documents: Sequence[Totals], name: Literal["kl", "nll"]) -> dict[Row, float]:
    sums = [d.kl if name == "kl" else d.nll for d in documents]
    tokens = sum(d.tokens for d in documents)
    return {row: sum(of_document[row] for of_document in sums) / tokens for row in sums[0]} if sums else {}


def _recovered(documents: Sequence[Totals], row: Row, seed: int) -> dict[str, Any] | None:
    """`share` of the window's KL that a variant takes away again, and `difference` of both in nats per token, with 95 %
    intervals (None for too few documents, and where a draw of documents loses nothing); `median_share` over the
    documents of which the window loses something. None where it loses nothing.

    Of a variant that retains M tokens: `against`, by variant of those that keep as many and were measured (where it has
    a cell, the same without it among them), on how many `documents` of how many (`of`) it has the lower KL of the two,
    and by how many nats per token the other's is higher (`difference`, with its interval).
    """
    if sum(d.kl.get("window", 0) for d in documents) <= 0:
        return None
    sums = np.array([(d.kl["window"], d.kl[row]) for d in documents], dtype=np.float64)
    shares = [share for d in documents if (share := d.recovered(row)) is not None]
    found = {
        "share": float(_recovered_share(sums.sum(0)[None])[0]),
        "share_ci95": _interval(sums, _recovered_share, seed),
        "median_share": float(np.median(shares)),
        **_difference(documents, "window", row, seed),
    }
    rivals = [other for other in rivals_of(own_variant(row)) if other != row and other in documents[0].kl]
    if rivals:
        found["against"] = {other: _compare(documents, row, other, seed) for other in rivals}
    return found


def rivals_of(variant: Variant) -> list[Variant]:
    """What a variant that retains tokens is compared with: as many tokens, chosen in other ways, and itself without a
    cell."""
    spec = parse_variant(variant)
    if spec.kind != "retained":
        return []
    kinds = ("wider", "random", "received", *("retained",) * spec.has_cell)
    return [f"{kind}{spec.num_tokens}" for kind in kinds]


def _compare(documents: Sequence[Totals], row: Row, other: Row, seed: int) -> dict[str, Any]:
    better = sum(d.kl[row] < d.kl[other] for d in documents)
    return {"documents": better, "of": len(documents), **_difference(documents, other, row, seed)}


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
