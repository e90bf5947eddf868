"""The picture of suite `efficiency`, as PNG bytes."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from pipeline.evaluation.drawing import draw
from pipeline.evaluation.efficiency.summary import is_measured
from pipeline.evaluation.suite import Record
from pipeline.evaluation.variant_style import colour_of, label


def plot_efficiency(contexts: Sequence[Record]) -> bytes:
    """Seconds of reading, milliseconds of a new token, cache and, where accounted for, FLOPs against the length.

    At least one of the contexts was measured.
    """
    heights = (1, 1, 1, 0.8) if any(r["accounted"] is not None for r in contexts) else (1, 1, 1)
    by_variant = {r["variant"]: [x for x in contexts if x["variant"] == r["variant"]] for r in contexts}
    with draw(2.4 * sum(heights), heights=heights) as ((prefill, decode, cache, *flops), drawing):
        for variant, records in by_variant.items():
            measured = [r for r in records if is_measured(r)]
            accounted = [r for r in records if r["accounted"] is not None]
            dots = {"color": colour_of(variant), "label": label(variant), "marker": "o", "markersize": 4}
            line = {"color": colour_of(variant), "linewidth": 1.4}
            _draw(prefill, measured, lambda r: r["prefill_s"], dots | {"linewidth": 1})
            _draw(decode, measured, lambda r: 1000 * r["decode_s"], dots | {"linewidth": 1})
            _draw(cache, measured, lambda r: r["cache_bytes"] / 2**20, dots | {"linestyle": "none"})
            _draw(cache, accounted, lambda r: r["accounted"]["kept_bytes"] / 2**20, line)
            for axes in flops:
                _draw(axes, accounted, lambda r: r["accounted"]["prefill_flops"] / 1e9, line)
        for axes, text in (
            (prefill, "read (s)"),
            (cache, "cache (MiB)"),
            *((axes, "read (GFLOPs)") for axes in flops),
        ):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel(text)
        decode.set_ylabel("new token (ms)")
        decode.set_ylim(bottom=0)
        lengths = sorted({r["length"] for r in contexts})
        lowest = (prefill, decode, cache, *flops)[-1]
        lowest.set_xscale("log", base=2)
        lowest.set_xticks(lengths, [f"{n:,}" for n in lengths])
        lowest.xaxis.set_minor_locator(NullLocator())
        lowest.set_xlabel("context (tokens)")
        prefill.legend(frameon=False, ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawing.png


def _draw(axes: Axes, records: Sequence[Record], value: Callable[[Record], float], style: dict) -> None:
    axes.plot([r["length"] for r in records], [value(r) for r in records], **style)
