"""The statistics of a packed folder as one picture."""

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

COLOURS = ("blue", "orange", "green", "red", "purple", "brown", "pink", "olive", "cyan")
OTHERS_COLOUR = "0.6"


def plot_stats(stats: dict, name: str) -> bytes:
    """PNG of what `collect_stats` returns; `name` titles it."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    total = stats["total"]
    figure.suptitle(
        f"{_plain(name)}: {_short(total['tokens'])} tokens of {_short(total['documents'])} documents in "
        f"{_short(total['samples'])} samples of up to {stats['seq_len']:,} tokens"
    )
    (lengths, windows), (fill, sources) = figure.subplots(2, 2)
    groups = _groups(stats["sources"])
    _plot_lengths(lengths, groups)
    _plot_windows(windows, total)
    _plot_fill(fill, total)
    _plot_sources(sources, groups, total["tokens"])
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def _groups(sources: list[dict]) -> list[tuple[str, str, list[dict]]]:
    """Label, colour and members: the largest sources one by one, the others together."""
    ordered = sorted(sources, key=lambda source: -source["tokens"])
    groups = [
        (_plain(source["name"]), f"tab:{colour}", [source]) for source, colour in zip(ordered, COLOURS, strict=False)
    ]
    rest = ordered[len(COLOURS) :]
    return [*groups, (f"{len(rest)} others", OTHERS_COLOUR, rest)] if rest else groups


def _plot_lengths(axes: Axes, groups: list[tuple[str, str, list[dict]]]) -> None:
    num_bins = max((len(s["document_lengths"]["histogram"]) for _, _, members in groups for s in members), default=0)
    bottom = [0] * num_bins
    for label, colour, members in groups:
        heights = [0] * num_bins
        for source in members:
            for place, row in enumerate(source["document_lengths"]["histogram"]):
                heights[place] += row["number"]
        axes.bar([n + 0.5 for n in range(num_bins)], heights, 0.9, bottom, color=colour, label=label)
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    first = next((n for n, height in enumerate(bottom) if height), 0)
    ticks = range(first, num_bins + 1, 1 + (num_bins - first) // 12)
    axes.set_xticks(ticks, [_short(1 << n) for n in ticks])
    axes.set_xlim(first - 0.2, num_bins + 0.2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set(title="Length of documents", xlabel="tokens (before cutting)", ylabel="documents")
    if len(groups) > 1:
        axes.legend(fontsize="small")


def _plot_windows(axes: Axes, total: dict) -> None:
    axes.set(title="Tokens in documents longer than a window", xlabel="window (tokens)", ylabel="share of the tokens")
    styles = (("document_lengths", "documents, whole", "--"), ("piece_lengths", "as they lie in the samples", "-"))
    windows = [row["window"] for row in total["document_lengths"]["longer_than"]]
    for name, label, style in styles:
        longer = {row["window"]: row["tokens"] / total[name]["tokens"] for row in total[name]["longer_than"]}
        shares = [longer.get(window, 0) for window in windows]
        axes.plot(range(len(windows)), shares, style, marker="o", markersize=4, color="black", label=label)
    step = 1 + len(windows) // 12
    axes.set_xticks(range(0, len(windows), step), [_short(w) for w in windows[::step]])
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", alpha=0.3)
    if windows:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "no document is longer than 128 tokens", ha="center", transform=axes.transAxes)


def _plot_fill(axes: Axes, total: dict) -> None:
    bins = total["sample_fill"]
    width = bins[0]["to"]
    axes.bar([row["from"] + width / 2 for row in bins], [row["number"] for row in bins], width * 0.9, color="0.35")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlim(-0.03, 1.08)
    axes.set_ylim(0)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1 + width / 2], ["0 %", "25 %", "50 %", "75 %", "full"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set(
        title=f"How full samples are ({total['packing_efficiency']:.2%} of all places used)",
        xlabel="tokens in the sample, share of seq_len",
        ylabel="samples (log scale)",
    )


def _plot_sources(axes: Axes, groups: list[tuple[str, str, list[dict]]], all_tokens: int) -> None:
    labelled = any(source["labels"] for _, _, members in groups for source in members)
    axes.set(title=f"Tokens by source{' (dark: supervised)' if labelled else ''}", xlabel="tokens")
    longest = 1
    for place, (_, colour, members) in enumerate(groups):
        tokens = sum(source["tokens"] for source in members)
        supervised = sum(source["supervised_tokens"] or 0 for source in members)
        labels = any(source["labels"] for source in members)
        longest = max(longest, tokens)
        axes.barh(place, tokens, color=colour, alpha=0.45 if labels else 1)
        axes.barh(place, supervised, color=colour)
        note = f"{_short(tokens)} ({tokens / max(all_tokens, 1):.1%})"
        note += f"\n{supervised / max(tokens, 1):.0%} supervised" if labels else ""
        axes.annotate(note, (tokens, place), (4, 0), va="center", textcoords="offset points", fontsize="small")
    axes.set_yticks(range(len(groups)), [label for label, _, _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlim(0, 1.35 * longest)  # room for the notes
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _plain(name: str) -> str:
    """Keeps matplotlib from reading formulas into a name."""
    return name.replace("$", r"\$")


def _short(value: float) -> str:
    """1,500 as 1.5k, 2,000,000 as 2M; a power of two by 1,024: 24,576 is 24.6k, but 32,768 is 32k."""
    base = 1024 if value == int(value) and int(value).bit_count() == 1 else 1000
    letters = iter("kMGT")
    letter = ""
    while value >= base:
        value, letter = value / base, next(letters)
    return f"{value:.3g}{letter}"
