"""The pictures of suite `probing`, as PNG bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.drawing import QUIET, draw
from pipeline.evaluation.variant_style import colour_of


def plot_shares(shares: Sequence[Sequence[float | None]], width: int) -> bytes:
    """|memory read| / |attention output| by layer and distance past W, in bins of `width` tokens."""
    values = np.ma.masked_invalid(np.array(shares, dtype=np.float64))
    layers, bins = values.shape
    with draw(max(2.6, 1.4 + 0.13 * layers)) as ((axes,), drawing):
        axes.grid(False)
        mesh = axes.pcolormesh(np.arange(bins + 1) * width, np.arange(layers + 1) - 0.5, values, cmap="viridis")
        axes.figure.colorbar(mesh, ax=axes, label="|memory| / |attention|")
        axes.set_xlabel("tokens past the lossless budget W")
        axes.set_ylabel("layer")
        axes.yaxis.get_major_locator().set_params(integer=True)
    return drawing.png


def plot_effects(layers: dict[str, Any]) -> bytes:
    """KL to full attention without each layer's memory, less that with all, with intervals where there are any."""
    effects = [row["effect"] for row in layers["without"]]
    intervals = [row["effect_ci95"] for row in layers["without"]]
    reach = None
    if None not in intervals:
        lows, highs = np.array(intervals).T
        reach = np.maximum([effects - lows, highs - effects], 0)
    with draw(3.0) as ((axes,), drawing):
        axes.bar(
            range(len(effects)), effects, yerr=reach, color=colour_of("ahn"), ecolor=QUIET, error_kw={"elinewidth": 1}
        )
        axes.axhline(0, color=QUIET, linewidth=0.8)
        axes.set_xlabel("layer whose memory is zeroed")
        axes.set_ylabel("added KL (nats)")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return drawing.png
