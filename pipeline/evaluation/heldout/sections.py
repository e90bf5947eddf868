"""Suite `heldout` in the report and on the terminal."""

from collections.abc import Sequence
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.heldout.plots import plot_documents, plot_kl_by_distance, plot_nll_by_position
from pipeline.evaluation.heldout.summary import DocumentTotals, bin_positions, sum_documents
from pipeline.evaluation.suite import Picture, Record, Section, Table, Tile
from pipeline.evaluation.variant_style import LABELS


def make_sections(summary: dict[str, Any], records: Sequence[Record], window: WindowSpec) -> list[Section]:
    """The numbers, KL and loss by position, document by document."""
    bins, documents = bin_positions(records, window), sum_documents(records)
    lead = (
        f"Forward KL to the same model with full attention, and perplexity, per token past the first "
        f"{window.lossless_budget}, on {summary['num_documents']} held-out documents ({summary['num_tokens']:,} scored "
        f"tokens)."
    )
    tables = [_variants(summary)]
    pictures = [
        Picture(plot_kl_by_distance(bins), "KL to full attention by distance past the window, for each variant"),
        Picture(plot_nll_by_position(bins, window), "Loss above full attention's by position, for each variant"),
    ]
    if {"window", "ahn"} <= summary["kl"].keys():
        caption = "Below the dashed line, the memory helps."
        pictures.append(Picture(plot_documents(documents), "KL of each document, AHN against window", caption, True))
        tables.append(_documents(documents))
    note = "Intervals: 95 %, paired bootstrap over documents, 10,000 draws."
    return [Section(headline(summary), lead, _tiles(summary), tables, pictures, note=note)]


def headline(summary: dict[str, Any]) -> str:
    """What was found, in a line."""
    found = summary["recovered"].get("ahn")
    if found is None:
        return "KL and perplexity past the window"
    if found["difference_ci95"] is None:
        return f"The memory changes the KL to full attention by {-found['share']:.1%}"
    if found["difference_ci95"][0] > 0:
        return f"The memory recovers {found['share']:.1%} of what the window loses"
    if found["difference_ci95"][1] < 0:
        return f"The memory makes the window worse: KL up by {-found['share']:.1%}"
    return "No difference shown between the memory and the window alone"


def format_summary(summary: dict[str, Any]) -> str:
    """The suite's part of report.json as a few lines for a terminal."""
    kl, window = summary["kl"], summary["window"]
    lines = [
        f"{summary['num_documents']} held-out documents, {summary['num_tokens']:,} tokens past "
        f"W = {window['lossless_budget']} (S = {window['num_sink_tokens']}, R = {window['window_size']})",
        f"{'attention':<30}{'KL to full':>12}{'perplexity':>12}",
    ]
    for variant, perplexity in summary["ppl"].items():
        lines.append(f"{LABELS[variant]:<30}{kl.get(variant, 0.0):>12.4f}{perplexity:>12.3f}")
    if "ahn" in summary["recovered"]:
        found = summary["recovered"]["ahn"]
        lines.append(f"KL recovered: {found['share']:.1%} (95 % interval {_interval(found['share_ci95'], '.1%')})")
    return "\n".join(lines)


def _variants(summary: dict[str, Any]) -> Table:
    rows = []
    for variant, perplexity in summary["ppl"].items():
        found = summary["recovered"].get(variant)
        share = "" if found is None else f"{found['share']:.1%}"
        interval = "" if found is None else _interval(found["share_ci95"], ".1%")
        kl = "0" if variant == "full" else f"{summary['kl'][variant]:.4f}"
        rows.append([LABELS[variant], kl, f"{perplexity:.3f}", share, interval])
    header = ["attention", "KL to full (nats)", "perplexity", "of the window's KL recovered", "95 % interval"]
    return Table(header, rows, emphasised=[i for i, variant in enumerate(summary["ppl"]) if variant == "ahn"])


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    if "ahn" not in summary["recovered"]:
        return []
    found = summary["recovered"]["ahn"]
    return [
        Tile(
            f"{found['share']:.1%}",
            f"of the window's KL recovered by the memory; 95 % interval {_interval(found['share_ci95'], '.1%')}",
        ),
        Tile(
            f"{found['difference']:.4f}",
            f"nats per token, window minus AHN; 95 % interval {_interval(found['difference_ci95'], '.4f')}",
        ),
    ]


def _documents(documents: Sequence[DocumentTotals]) -> Table:
    rows = [
        [d.document, f"{d.tokens:,}", *(f"{d.kl[v] / d.tokens:.4f}" for v in ("window", "ahn")),
         "-" if (share := d.recovered("ahn")) is None else f"{share:.1%}"]
        for d in documents
    ]  # fmt: skip
    header = ["document", "tokens", "KL window", "KL AHN", "recovered"]
    return Table(header, rows, caption=f"All {len(documents)} documents", is_folded=True)


def _interval(bounds: Sequence[float] | None, style: str) -> str:
    return "not defined for one document" if bounds is None else f"{bounds[0]:{style}} to {bounds[1]:{style}}"
