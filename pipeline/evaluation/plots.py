"""The report's pictures, as PNG bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.summary import DocumentTotals, PositionBin
from pipeline.evaluation.training_curve import TrainingCurve

WINDOW_COLOUR, AHN_COLOUR, QUIET = "#c2571a", "#1b6ca8", "#8a8f98"


class Picture:
    """A finished figure; `png` is filled when the `draw` block ends."""

    png: bytes = b""


@contextmanager
def draw(height: float, width: float = 6.0, heights: tuple[float, ...] = (1,)) -> Iterator[tuple[list[Axes], Picture]]:
    """One figure of panels above each other, which share x and divide the height as `heights` says.

    Sizes in inches. The report's column is 6 wide, which keeps text legible on a phone.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
    picture = Picture()
    yield panels, picture
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=180)
    picture.png = buffer.getvalue()


def plot_kl_by_position(bins: list[PositionBin]) -> bytes:
    """KL of both variants against the number of tokens evicted by then, and what the memory saves."""
    with draw(4.2, heights=(2, 1)) as ((kl, saved), picture):
        centres = [(b.start + b.end - 1) / 2 for b in bins]
        style = {"marker": "o", "markersize": 3, "linewidth": 1.8}
        kl.plot(centres, [b.kl_window for b in bins], color=WINDOW_COLOUR, label="sinks + window", **style)
        kl.plot(centres, [b.kl_ahn for b in bins], color=AHN_COLOUR, label="sinks + window + AHN", **style)
        kl.set_ylabel("KL to full (nats)")
        kl.set_ylim(bottom=0)
        kl.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.18))
        widths = [0.8 * (b.end - b.start) for b in bins]
        saved.bar(centres, [b.kl_window - b.kl_ahn for b in bins], width=widths, color=AHN_COLOUR)
        saved.axhline(0, color=QUIET, linewidth=0.8)
        saved.set_ylabel("saved (nats)")
        saved.set_xlabel("tokens past the lossless budget W")
    return picture.png


def plot_documents(documents: list[DocumentTotals]) -> bytes:
    """Each document's KL with the window alone (x) and with the memory (y): below the diagonal is better."""
    with draw(4.0, width=4.4) as ((axes,), picture):
        window = [d.kl_window / d.tokens for d in documents]
        ahn = [d.kl_ahn / d.tokens for d in documents]
        low, high = 0.95 * min(window + ahn), 1.05 * max(window + ahn)
        axes.plot([low, high], [low, high], color=QUIET, linewidth=1, linestyle="--", label="no change")
        axes.scatter(window, ahn, color=AHN_COLOUR, s=28, alpha=0.8, linewidths=0, label="one document")
        axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
        axes.set_aspect("equal")
        axes.set_xlabel("KL, sinks + window (nats)")
        axes.set_ylabel("KL, sinks + window + AHN (nats)")
        axes.legend(frameon=False, loc="upper left")
    return picture.png


def plot_training(curve: TrainingCurve) -> bytes:
    """The run's training loss, with a running mean over about a tenth of the run."""
    with draw(2.7) as ((axes,), picture):
        losses = curve.losses
        width = max(5, len(losses) // 10)
        means = [sum(losses[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(losses))]
        axes.plot(curve.steps, losses, color=QUIET, alpha=0.55, linewidth=1, label="step")
        axes.plot(curve.steps, means, color=AHN_COLOUR, linewidth=2, label=f"mean of the last {width} steps")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(curve.label)
        axes.legend(frameon=False)
    return picture.png
