"""Suite `heldout` in the report and on the terminal."""

from collections.abc import Sequence
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.heldout.plots import plot_documents, plot_kl_by_distance, plot_nll_by_position
from pipeline.evaluation.heldout.summary import Totals, bin_positions, sum_documents
from pipeline.evaluation.suite import Picture, Record, Section, Table, Tile
from pipeline.evaluation.variant_style import LABELS, label

INTERVALS = (
    "Intervals: 95 %, paired bootstrap over documents, 10,000 draws; not defined for fewer than three documents, and "
    "where documents do not differ."
)


def make_sections(summary: dict[str, Any], records: Sequence[Record], window: WindowSpec) -> list[Section]:
    """The numbers, KL and loss by position, document by document."""
    bins, documents = bin_positions(records, window), sum_documents(records)
    lead = (
        f"Forward KL to the same model with full attention, and perplexity, per token past the first "
        f"{window.lossless_budget}, on {summary['num_documents']} held-out documents ({summary['num_tokens']:,} scored "
        f"tokens)."
    )
    tables = [_rows(summary)]
    pictures = [
        Picture(plot_kl_by_distance(bins), "KL to full attention by distance past the window, for each variant"),
        Picture(plot_nll_by_position(bins, window), "Loss above full attention's by position, for each variant"),
    ]
    if {"window", "ahn"} <= summary["kl"].keys():
        caption = "Below the dashed line, the AHN is nearer to full attention than the window alone."
        pictures.append(Picture(plot_documents(documents), "KL of each document, AHN against window", caption, True))
        tables.append(_documents(documents))
    return [Section(headline(summary), lead, _tiles(summary), tables, pictures, note=_note(summary))]


def headline(summary: dict[str, Any]) -> str:
    """What was found, in a line: against the window, and against the control."""
    found, control = summary["recovered"].get("ahn"), summary["control"]
    if found is None:
        return "KL and perplexity past the window"
    interval = found["difference_ci95"]
    if interval is not None and interval[1] < 0:
        return f"The AHN makes the window worse: KL up by {-found['share']:.1%}"
    if interval is not None and interval[0] <= 0:
        return "No difference shown between the AHN and the window alone"
    change = f"With the AHN, the window's KL to full attention changes by {-found['share']:+.1%}"
    if control is None or "foreign" not in control["recovered"]:
        return f"{change} (no control)"
    return f"{change}, with another document's memory by {-control['recovered']['foreign']['share']:+.1%}"


def format_summary(summary: dict[str, Any]) -> str:
    """The suite's part of report.json as a few lines for a terminal."""
    kl, window = summary["kl"], summary["window"]
    lines = [
        f"{summary['num_documents']} held-out documents, {summary['num_tokens']:,} tokens past "
        f"W = {window['lossless_budget']} (S = {window['num_sink_tokens']}, R = {window['window_size']})",
        f"{'attention':<32}{'KL to full':>12}{'perplexity':>12}",
    ]
    for variant, perplexity in summary["ppl"].items():
        lines.append(f"{LABELS[variant]:<32}{kl.get(variant, 0.0):>12.4f}{perplexity:>12.3f}")
    if control := summary["control"]:
        lines.append(f"{label('foreign'):<32}{control['kl']['foreign']:>12.4f}{control['ppl']['foreign']:>12.3f}")
    lines += [f"{tile.value} {tile.caption}" for tile in _tiles(summary)]
    return "\n".join([*lines, *_absent_control(summary)])


def _rows(summary: dict[str, Any]) -> Table:
    control, kl = summary["control"], summary["kl"]
    rows = [
        _row(v, f"{kl[v]:.4f}" if v in kl else "0", perplexity, summary["recovered"].get(v))
        for v, perplexity in summary["ppl"].items()
    ]
    if control is not None:
        found = control["recovered"].get("foreign")
        rows.append(_row("foreign", f"{control['kl']['foreign']:.4f}", control["ppl"]["foreign"], found))
    header = ["attention", "KL to full (nats)", "perplexity", "KL below the window's", "95 % interval"]
    return Table(header, rows, emphasised=[i for i, variant in enumerate(summary["ppl"]) if variant == "ahn"])


def _row(row: str, kl: str, perplexity: float, found: dict[str, Any] | None) -> list[str]:
    below = ("", "") if found is None else (f"{found['share']:.1%}", _interval(found["share_ci95"], ".1%"))
    return [label(row), kl, f"{perplexity:.3f}", *below]


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    tiles, control = [], summary["control"]
    if "ahn" in summary["recovered"]:
        found = summary["recovered"]["ahn"]
        what = "less KL to full attention with the AHN than with the window alone; 95 % interval"
        tiles.append(Tile(f"{found['share']:.1%}", f"{what} {_interval(found['share_ci95'], '.1%')}"))
    if control is not None and "foreign" in control["recovered"]:
        found = control["recovered"]["foreign"]
        what = "less with another document's memory in its place, which knows nothing of the text; 95 % interval"
        tiles.append(Tile(f"{found['share']:.1%}", f"{what} {_interval(found['share_ci95'], '.1%')}"))
    if control is not None:
        interval = _interval(control["difference_ci95"], ".4f")
        what = "nats per token that the text's own memory saves over another document's; 95 % interval"
        tiles.append(Tile(f"{control['difference']:.4f}", f"{what} {interval}"))
    return tiles


def _note(summary: dict[str, Any]) -> str:
    notes = [INTERVALS, *_absent_control(summary)]
    if control := summary["control"]:
        notes.append(
            f"{label('foreign')}: the document is read with the memory that the next document of the folder has at "
            "the same position; what that gains over the window is adaptation to reading with a window, not memory of "
            "the text."
        )
        if control["num_tokens"] < summary["num_tokens"]:
            notes.append(
                f"Other documents are too short for some: that row, and what is compared with it, has "
                f"{control['num_tokens']:,} of the {summary['num_tokens']:,} tokens; on them the AHN with its own "
                f"memory has a KL of {control['kl']['ahn']:.4f}."
            )
    if summary["rounding_kl"] is not None:
        notes.append(
            f"Rounding in the model's dtype: full attention that reads the first piece in other parts has a KL of "
            f"{summary['rounding_kl']:.2g} nats per token to itself; all KLs have about as much from rounding alone."
        )
    return " ".join(notes)


def _absent_control(summary: dict[str, Any]) -> list[str]:
    if "ahn" not in summary["kl"] or summary["control"] is not None:
        return []
    return ["No control: --data has no second document that is long enough to lend its memory."]


def _documents(documents: Sequence[Totals]) -> Table:
    rows = [
        [d.document, f"{d.tokens:,}", *(f"{d.kl[v] / d.tokens:.4f}" for v in ("window", "ahn")),
         "-" if (share := d.recovered("ahn")) is None else f"{share:.1%}"]
        for d in documents
    ]  # fmt: skip
    header = ["document", "tokens", "KL window", "KL AHN", "KL below the window's"]
    return Table(header, rows, caption=f"All {len(documents)} documents", is_folded=True)


def _interval(bounds: Sequence[float] | None, style: str) -> str:
    return "not defined" if bounds is None else f"{bounds[0]:{style}} to {bounds[1]:{style}}"
