"""The heat map of suite `needles`, as PNG bytes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipeline.config import Variant
from pipeline.evaluation.drawing import draw
from pipeline.evaluation.suite import Record
from pipeline.evaluation.variant_style import label


def plot_grid(records: Sequence[Record], variants: Sequence[Variant]) -> bytes:
    """Mean log-probability of the answers' tokens by depth and length, a panel a variant; a cell is framed where all
    needles of all its prompts are in the window."""
    lengths, depths = (sorted({r[name] for r in records}) for name in ("length", "depth"))
    grids = np.zeros((len(variants), len(depths), len(lengths)))
    in_window = np.zeros(grids.shape, dtype=bool)
    for at in np.ndindex(grids.shape):
        needles = _needles(records, variants[at[0]], depths[at[1]], lengths[at[2]])
        grids[at] = sum(needle["log_prob"] for needle in needles) / sum(needle["tokens"] for needle in needles)
        in_window[at] = not any(needle["evicted"] for needle in needles)
    height = len(variants) * (0.45 + 0.26 * len(depths)) + 0.5
    with draw(height, heights=(1,) * len(variants)) as (panels, drawing):
        for axes, variant, grid, framed in zip(panels, variants, grids, in_window, strict=True):
            image = axes.imshow(grid, cmap="viridis", vmin=grids.min(), vmax=0, aspect="auto")
            axes.set_title(label(variant), fontsize=9, loc="left")
            axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
            _label_cells(axes, grid, framed, dark_below=grids.min() / 2)
        panels[-1].set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        panels[-1].set_xlabel("length of the prompt (tokens)")
        panels[len(panels) // 2].set_ylabel("depth of the needle")
        panels[0].figure.colorbar(image, ax=panels, label="log-probability per token of the answer (nats)")
    return drawing.png


def _needles(records: Sequence[Record], variant: Variant, depth: float, length: int) -> list[Record]:
    here = (r for r in records if (r["variant"], r["depth"], r["length"]) == (variant, depth, length))
    return [needle for record in here for needle in record["needles"]]


def _label_cells(axes: Axes, grid: np.ndarray, framed: np.ndarray, dark_below: float) -> None:
    axes.grid(visible=False)
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value < dark_below else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        if framed[row, column]:
            frame = (column - 0.47, row - 0.43), 0.94, 0.86
            axes.add_patch(Rectangle(*frame, fill=False, edgecolor="#e8590c", linewidth=1.8))
