"""From records to report.json: totals over documents, their ratios and intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.records import PieceRecord

VARIANTS = ("full", "window", "ahn")


@dataclass(frozen=True)
class DocumentTotals:
    """Sums over the scored tokens of one document (all its pieces), in nats."""

    document: str
    tokens: int
    kl_window: float
    kl_ahn: float
    nll_full: float
    nll_window: float
    nll_ahn: float

    @property
    def recovered(self) -> float:
        """Share of the KL that the window causes which the memory takes away again."""
        return 1 - self.kl_ahn / self.kl_window


def sum_documents(records: list[PieceRecord]) -> list[DocumentTotals]:
    """One row a document, in the order of the records."""
    pieces: dict[str, list[PieceRecord]] = {}
    for record in records:
        pieces.setdefault(record.document, []).append(record)
    columns = ("kl_window", "kl_ahn", "nll_full", "nll_window", "nll_ahn")
    return [
        DocumentTotals(
            document,
            sum(len(piece.positions) for piece in group),
            *(float(sum(np.sum(getattr(piece, name)) for piece in group)) for name in columns),
        )
        for document, group in pieces.items()
    ]


def summarise(records: list[PieceRecord], window: WindowSpec, seed: int = 0) -> dict:
    """report.json. KL in nats per token, perplexity per token, both over tokens past the window.

    `tokens_per_s` counts a piece's tokens once, though three passes read them, over all processes.
    """
    documents = sum_documents(records)
    rows = [(d.tokens, d.kl_window, d.kl_ahn) for d in documents]
    sums = np.array(rows, dtype=np.float64)
    tokens, kl_window, kl_ahn = sums.sum(axis=0)

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> list[float] | None:
        found = paired_interval(sums, statistic, seed=seed)
        return None if found is None else list(found)

    perplexity = {name: float(np.exp(sum(getattr(d, f"nll_{name}") for d in documents) / tokens)) for name in VARIANTS}
    return {
        "kl": {
            "window": kl_window / tokens,
            "ahn": kl_ahn / tokens,
            "recovered": 1 - kl_ahn / kl_window,
            "recovered_ci95": interval(lambda totals: 1 - totals[:, 2] / totals[:, 1]),
            "difference_ci95": interval(lambda totals: (totals[:, 1] - totals[:, 2]) / totals[:, 0]),
        },
        "ppl": perplexity,
        "tokens_per_s": sum(r.length for r in records) / sum(r.seconds / r.num_ranks for r in records),
        "peak_rss_gib": max(r.peak_rss_gib for r in records),
        "num_documents": len(documents),
        "num_tokens": int(tokens),
        "window": {
            "num_sink_tokens": window.num_sink_tokens,
            "window_size": window.window_size,
            "lossless_budget": window.lossless_budget,
        },
    }


def format_summary(summary: dict) -> str:
    """report.json as a few lines for a terminal."""
    kl, ppl, window = summary["kl"], summary["ppl"], summary["window"]
    lines = [
        f"{summary['num_documents']} held-out documents, {summary['num_tokens']:,} tokens past "
        f"W = {window['lossless_budget']} (S = {window['num_sink_tokens']}, R = {window['window_size']})",
        f"{'attention':<22}{'KL to full':>12}{'perplexity':>12}",
    ]
    labels = {"full": "full", "window": "sinks + window", "ahn": "sinks + window + AHN"}
    lines += [f"{labels[name]:<22}{kl.get(name, 0.0):>12.4f}{ppl[name]:>12.3f}" for name in VARIANTS]
    interval = "no interval for one document"
    if kl["recovered_ci95"] is not None:
        low, high = kl["recovered_ci95"]
        interval = f"95 % interval {low:.1%} to {high:.1%}"
    return "\n".join([*lines, f"KL recovered: {kl['recovered']:.1%} ({interval})"])


@dataclass(frozen=True)
class PositionBin:
    """Mean KL of the tokens whose distance past the lossless budget lies in [start, end)."""

    start: int
    end: int
    tokens: int
    kl_window: float
    kl_ahn: float


def bin_positions(records: list[PieceRecord], window: WindowSpec, max_bins: int = 24) -> list[PositionBin]:
    """KL against the number of tokens evicted by then, in bins of equal width; empty ones are left out."""
    distance = np.concatenate([np.asarray(r.positions) for r in records]) - window.lossless_budget
    kl_window = np.concatenate([r.kl_window for r in records])
    kl_ahn = np.concatenate([r.kl_ahn for r in records])
    span = int(distance.max()) + 1
    width = -(-span // max_bins)
    number = distance // width
    bins = []
    for index in np.unique(number):
        inside = number == index
        start = int(index) * width
        bins.append(
            PositionBin(
                start,
                min(start + width, span),
                int(inside.sum()),
                float(kl_window[inside].mean()),
                float(kl_ahn[inside].mean()),
            )
        )
    return bins
