"""How the report's pictures are drawn."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.axes import Axes
from matplotlib.figure import Figure

QUIET = "#8a8f98"


class Drawing:
    """A finished figure; `png` is filled when the `draw` block ends."""

    png: bytes = b""


@contextmanager
def draw(height: float, width: float = 6.0, heights: tuple[float, ...] = (1,)) -> Iterator[tuple[list[Axes], Drawing]]:
    """One figure of panels above each other, which share x and divide the height as `heights` says.

    Sizes in inches. The report's column is 6 wide, which keeps text legible on a phone.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
    drawing = Drawing()
    yield panels, drawing
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    drawing.png = buffer.getvalue()
