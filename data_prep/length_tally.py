"""Counts how long documents and samples are, with memory that grows with the distinct lengths only."""

from collections import Counter
from dataclasses import dataclass, field

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
SMALLEST_WINDOW = 128
NUM_FILL_BINS = 20


@dataclass
class Lengths:
    """How many documents (or pieces) have each length in tokens."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def tokens(self) -> int:
        return sum(length * count for length, count in self.counts.items())

    def quantiles(self) -> dict[str, int]:
        """The least length that at least this share of documents does not exceed; empty without documents."""
        ordered, passed, values = sorted(self.counts.items()), 0, {}
        for length, count in ordered:
            passed += count
            for name, share in QUANTILES.items():
                if name not in values and passed >= share * self.total:
                    values[name] = length
        return values

    def histogram(self) -> list[dict[str, int]]:
        """Documents and their tokens by length, in bins [2^k, 2^(k+1)) up to the longest."""
        bins = [{"from": 1 << k, "to": 2 << k, "number": 0, "tokens": 0} for k in range(self._longest.bit_length())]
        for length, count in self.counts.items():
            place = bins[length.bit_length() - 1]
            place["number"] += count
            place["tokens"] += count * length
        return bins

    def longer_than(self) -> list[dict[str, int]]:
        """How many documents, with how many tokens, are longer than each window 2^k that any of them exceeds."""
        bins, rows = self.histogram(), []
        window = SMALLEST_WINDOW
        while window < self._longest:
            above = bins[window.bit_length() - 1 :]
            exact = self.counts[window]  # as long as the window: not longer
            rows.append(
                {
                    "window": window,
                    "number": sum(place["number"] for place in above) - exact,
                    "tokens": sum(place["tokens"] for place in above) - exact * window,
                }
            )
            window *= 2
        return rows

    @property
    def _longest(self) -> int:
        return max(self.counts, default=0)


@dataclass
class Tally:
    """What a scan of some samples counts; `fill` counts samples by twentieths of seq_len (the last one: full)."""

    documents: Lengths = field(default_factory=Lengths)
    pieces: Lengths = field(default_factory=Lengths)
    fill: Counter[int] = field(default_factory=Counter)
    supervised_tokens: int = 0

    def add_sample(self, num_tokens: int, seq_len: int, pieces: list[dict], supervised_tokens: int) -> None:
        """`pieces`: the documents of its meta.json."""
        self.fill[min(num_tokens * NUM_FILL_BINS // seq_len, NUM_FILL_BINS)] += 1
        self.supervised_tokens += supervised_tokens
        self.pieces.counts.update(piece["end"] - piece["start"] for piece in pieces)
        self.documents.counts.update(piece["tokens"] for piece in pieces if piece["start"] == 0)

    def merge(self, other: "Tally") -> None:
        self.documents.counts.update(other.documents.counts)
        self.pieces.counts.update(other.pieces.counts)
        self.fill.update(other.fill)
        self.supervised_tokens += other.supervised_tokens

    def fill_histogram(self) -> list[dict[str, float]]:
        """Samples by share of seq_len used: bins [from, to), and full ones as from = to = 1."""
        edges = [n / NUM_FILL_BINS for n in range(NUM_FILL_BINS + 1)]
        return [{"from": a, "to": min(a + 1 / NUM_FILL_BINS, 1), "number": self.fill[n]} for n, a in enumerate(edges)]
