"""The pictures of suite `heldout`, as PNG bytes."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.drawing import QUIET, draw
from pipeline.evaluation.heldout.summary import PositionBin, Totals
from pipeline.evaluation.variant_style import colour_of, foreign_row, is_foreign, label, main_variant


def plot_kl_by_distance(bins: Sequence[PositionBin]) -> bytes:
    """KL of every row against the number of tokens that sinks + window have evicted by then, and what the main variant
    saves with its own memory (bars) and with another document's (dots)."""
    main = main_variant(bins[0].kl)
    has_saved = main is not None and "window" in bins[0].kl
    with draw(4.6 if has_saved else 3.4, heights=(2, 1) if has_saved else (1,)) as (panels, drawing):
        kl, centres = panels[0], [b.centre for b in bins]
        for row in bins[0].kl:
            _plot_row(kl, row, centres, [b.kl[row] for b in bins])
        kl.set_ylabel("KL to full (nats)")
        kl.set_ylim(bottom=0)
        kl.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        if has_saved:
            widths = [0.8 * (b.end - b.start) for b in bins]
            saved = [b.kl["window"] - b.kl[main] for b in bins]
            panels[1].bar(centres, saved, width=widths, color=colour_of(main))
            foreign = foreign_row(main)
            if foreign in bins[0].kl:
                adapted = [b.kl["window"] - b.kl[foreign] for b in bins]
                _plot_row(panels[1], foreign, centres, adapted, color=colour_of("full"))
            panels[1].axhline(0, color=QUIET, linewidth=0.8)
            panels[1].set_ylabel("saved (nats)")
        panels[-1].set_xlabel("tokens past sinks + window")
    return drawing.png


def plot_nll_by_position(bins: Sequence[PositionBin], window: WindowSpec) -> bytes:
    """Negative log-likelihood of every row, less that of full attention, against the position in the text."""
    with draw(3.2) as ((axes,), drawing):
        positions = [window.lossless_budget + b.centre for b in bins]
        for row in bins[0].kl:
            _plot_row(axes, row, positions, [b.nll[row] - b.nll["full"] for b in bins])
        axes.axhline(0, color=colour_of("full"), linewidth=1, label=label("full"))
        axes.set_ylabel("loss above full (nats)")
        axes.set_xlabel("position in the text (tokens)")
        axes.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawing.png


def plot_documents(documents: Sequence[Totals], main: Row) -> bytes:
    """Each document's KL with the window alone (x) and with the main variant (y): below the diagonal is better."""
    with draw(4.0, width=4.4) as ((axes,), drawing):
        window = [d.kl["window"] / d.tokens for d in documents]
        of_main = [d.kl[main] / d.tokens for d in documents]
        low, high = 0.95 * min(window + of_main), 1.05 * max(window + of_main)
        axes.plot([low, high], [low, high], color=QUIET, linewidth=1, linestyle="--", label="no change")
        axes.scatter(window, of_main, color=colour_of(main), s=28, alpha=0.8, linewidths=0, label="one document")
        axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
        axes.set_aspect("equal")
        axes.set_xlabel("KL, sinks + window (nats)")
        axes.set_ylabel(f"KL, {label(main)} (nats)")
        axes.legend(frameon=False, loc="upper left")
    return drawing.png


def _plot_row(axes: Axes, row: Row, x: Sequence[float], y: Sequence[float], color: str | None = None) -> None:
    axes.plot(
        x,
        y,
        color=color or colour_of(row),
        linestyle=":" if is_foreign(row) else "-",
        marker="o",
        markersize=3,
        label=label(row),
    )
