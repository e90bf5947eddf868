"""Recovered share of each memory at each point of the grid, with its interval over seeds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from pipeline.config import RecallStudyConfig, to_plain
from pipeline.evaluation.recall.scoring import GridPoint
from pipeline.evaluation.writing import write_atomically, writes_to


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


@dataclass(frozen=True)
class RetainedScores(MemoryScores):
    """Those of a memory that retains M tokens beside its cell; also of these tokens without the cell, of M tokens more
    in the window, and of M that chance retains. The other document's memory is its tokens and its state."""

    retained: float
    wider: float
    random: float


@dataclass(frozen=True)
class LayerBytes:
    """What one layer keeps of a document. `retained`: what M retained tokens add to its cache (keys, values, write
    gates, and for every token in it what scores are made from); `retained_bf16`: keys and values of M tokens in
    bfloat16; `state`: the cell's."""

    retained: int
    retained_bf16: int
    state: int


CellScores = dict[str, Sequence[Sequence[MemoryScores]]]
"""For each cell, for each seed, the memory's scores at each point."""


def interval_over_seeds(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % Student t interval of the mean, or None of fewer than two values."""
    if len(values) < 2:
        return None
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - reach), float(np.mean(values) + reach)


def summarise(
    points: Sequence[GridPoint],
    base: Sequence[Sequence[BaseScores]],
    cells: CellScores,
    retained: dict[int, CellScores] | None = None,
) -> list[dict]:
    """A row a point.

    Args:
        points: of the grid.
        base: for each seed, the base's scores at each point.
        cells: of memories that retain no tokens.
        retained: of those that retain M, by M.
    """
    rows = []
    for number, point in enumerate(points):
        of_base = [scores[number] for scores in base]
        row = {"facts": point.facts, "distance": point.distance, **_means(of_base)}
        row["cells"] = _of_cells(cells, of_base, number)
        if retained:
            row["retained"] = {str(count): _of_cells(found, of_base, number) for count, found in retained.items()}
        rows.append(row)
    return rows


def _of_cells(cells: CellScores, of_base: Sequence[BaseScores], number: int) -> dict[str, dict]:
    """What is said of each cell at one point of the grid."""
    said = {}
    for cell, scores in cells.items():
        of_cell = [of_seed[number] for of_seed in scores]
        recovered = [m.recovered(b) for m, b in zip(of_cell, of_base, strict=True)]
        said[cell] = {
            "recovered": float(np.mean(recovered)),
            "recovered_ci95": interval_over_seeds(recovered),
            "recovered_by_seed": recovered,
            **_means(of_cell),
        }
    return said


def write_results(
    config: RecallStudyConfig, base: str, rows: list[dict], layer_bytes: dict[int, dict[str, LayerBytes]]
) -> str:
    """Writes recall.json and recall.txt into --output; returns the table.

    Raises:
        UserError: they cannot be written.
    """
    result = {"settings": to_plain(config), "base": base, "points": rows}
    if layer_bytes:
        result["bytes"] = {
            str(count): {cell: asdict(held) for cell, held in cells.items()} for count, cells in layer_bytes.items()
        }
    table = format_table(rows, layer_bytes)
    with writes_to(config.output):
        write_atomically(config.output / "recall.json", json.dumps(result, indent=1) + "\n")
        write_atomically(config.output / "recall.txt", table + "\n")
    return table


def format_table(rows: Sequence[dict], layer_bytes: dict[int, dict[str, LayerBytes]] | None = None) -> str:
    """Shares of right answers of the base, then what each memory recovers and its controls, in per cent.

    Args:
        rows: of `summarise`.
        layer_bytes: by M and cell, where tokens are retained.
    """
    lines = ["facts  windows    full  window   limit   recovered [95 % interval], memory off, another document's state"]
    if layer_bytes:
        lines.append(f"{'':>39}cell + M retained: the same; the M without the cell, M more in the window, M by chance")
    for row in rows:
        shares = "".join(f"{row[name]:>8.1%}" for name in ("full", "window", "limit"))
        lines.append(f"{row['facts']:>5}{row['distance']:>9}{shares}")
        lines += [_format_cell(cell, found) for cell, found in row["cells"].items()]
        for count, cells in row.get("retained", {}).items():
            lines += [_format_cell(f"{cell} + {count}", found) for cell, found in cells.items()]
    for count, cells in (layer_bytes or {}).items():
        for cell, held in cells.items():
            lines.append(
                f"{count} retained tokens: {held.retained:,} bytes a layer as the cache holds them, keys and values in "
                f"bfloat16 {held.retained_bf16:,}; state of {cell}: {held.state:,}"
            )
    return "\n".join(lines)


def _format_cell(name: str, found: dict) -> str:
    interval = found["recovered_ci95"]
    spread = "" if interval is None else f" [{interval[0]:.1%}, {interval[1]:.1%}]"
    controls = ("memory_off", "foreign_state", "retained", "wider", "random")
    shares = "".join(f"{found[control]:>8.1%}" for control in controls if control in found)
    return f"{'':>34}{name:>21}{found['recovered']:>8.1%}{spread:<18}{shares}"


def _means(scores: Sequence[BaseScores] | Sequence[MemoryScores]) -> dict[str, float]:
    return {name: float(np.mean([getattr(s, name) for s in scores])) for name in vars(scores[0])}
