"""Recovered share of each memory at each point of the grid, with its interval over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.evaluation.recall.scoring import GridPoint


@dataclass(frozen=True)
class BaseScores:
    """Shares of right answers of the base on the documents of one seed and point."""

    full: float
    window: float
    limit: float


@dataclass(frozen=True)
class MemoryScores:
    """Shares of right answers of one trained memory on the documents of one seed and point; the last two are
    controls: its memory off, and the state of another document."""

    memory: float
    memory_off: float
    foreign_state: float

    def recovered(self, base: BaseScores) -> float:
        """Share of what the window loses that the memory brings back."""
        return (self.memory - base.window) / (base.full - base.window)


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % Student t interval of the mean, or None of fewer than two values."""
    if len(values) < 2:
        return None
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


def summarise(
    points: Sequence[GridPoint],
    base: Sequence[Sequence[BaseScores]],
    cells: dict[str, Sequence[Sequence[MemoryScores]]],
) -> list[dict]:
    """A row a point.

    Args:
        points: of the grid.
        base: for each seed, the base's scores at each point.
        cells: for each cell, for each seed, the memory's scores at each point.
    """
    rows = []
    for number, point in enumerate(points):
        of_base = [scores[number] for scores in base]
        row = {"facts": point.facts, "distance": point.distance, **_means(of_base), "cells": {}}
        for cell, scores in cells.items():
            of_cell = [of_seed[number] for of_seed in scores]
            recovered = [m.recovered(b) for m, b in zip(of_cell, of_base, strict=True)]
            row["cells"][cell] = {
                "recovered": float(np.mean(recovered)),
                "recovered_ci95": interval_over_seeds(recovered),
                "recovered_by_seed": recovered,
                **_means(of_cell),
            }
        rows.append(row)
    return rows


def format_table(rows: Sequence[dict]) -> str:
    """Shares of right answers of the base, then what each cell recovers and its two controls, in per cent."""
    lines = ["facts  windows    full  window   limit   recovered [95 % interval], memory off, another document's state"]
    for row in rows:
        shares = "".join(f"{row[name]:>8.1%}" for name in ("full", "window", "limit"))
        lines.append(f"{row['facts']:>5}{row['distance']:>9}{shares}")
        for cell, found in row["cells"].items():
            interval = found["recovered_ci95"]
            spread = "" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]"
            controls = f"{found['memory_off']:>8.1%}{found['foreign_state']:>8.1%}"
            lines.append(f"{'':>38}{cell:>17}{found['recovered']:>8.1%}{spread:<18}{controls}")
    return "\n".join(lines)


def _means(scores: Sequence[BaseScores] | Sequence[MemoryScores]) -> dict[str, float]:
    return {name: float(np.mean([getattr(s, name) for s in scores])) for name in vars(scores[0])}
