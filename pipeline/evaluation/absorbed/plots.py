"""The picture of suite `absorbed`, as PNG bytes."""

from typing import Any

from pipeline.evaluation.drawing import draw
from pipeline.evaluation.variant_style import colour_of, is_foreign, label, main_variant


def plot_distances(summary: dict[str, Any]) -> bytes:
    """Log-probability of the answers against the text since the document, with its intervals."""
    variants = summary["variants"]
    shaded = ("full", "window", main_variant(variants))
    with draw(3.8) as ((axes,), drawing):
        for row, found in variants.items():
            colour = colour_of(row)
            windows, values = ([distance[name] for distance in found] for name in ("windows", "log_prob"))
            axes.plot(windows, values, color=colour, marker="o", markersize=3.5,
                      linestyle=":" if is_foreign(row) else "-", label=label(row))  # fmt: skip
            bounds = [distance["log_prob_ci95"] for distance in found]
            if row in shaded and None not in bounds:
                axes.fill_between(windows, *zip(*bounds, strict=True), color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(windows, [str(distance) for distance in windows])
        axes.minorticks_off()
        axes.set_xlabel("windows of text since the document")
        axes.set_ylabel("log-probability per token (nats)")
        axes.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawing.png
