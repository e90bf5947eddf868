"""Suite `heldout` in the report and on the terminal."""

from collections.abc import Collection, Sequence
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.config import parse_variant
from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.heldout.plots import plot_documents, plot_kl_by_distance, plot_nll_by_position
from pipeline.evaluation.heldout.summary import bin_positions, sum_documents
from pipeline.evaluation.heldout.tables import (
    all_controls,
    bytes_table,
    control_rows,
    documents_table,
    format_interval,
    pair_tables,
    result_tables,
)
from pipeline.evaluation.suite import Picture, Record, Section, Tile
from pipeline.evaluation.variant_style import describe, foreign_row, label, main_variant

INTERVALS = (
    "Intervals: 95 %, paired bootstrap over documents, 10,000 draws; not defined for fewer than three documents, "
    "where documents do not differ, and where a draw of documents loses nothing."
)


def make_sections(summary: dict[str, Any], records: Sequence[Record], window: WindowSpec) -> list[Section]:
    """The numbers, KL and loss by position, document by document, and what is kept."""
    bins, documents, main = bin_positions(records, window), sum_documents(records), main_variant(summary["kl"])
    lead = (
        f"Forward KL to the same model with full attention, and perplexity, per token past the first "
        f"{window.lossless_budget}, on {summary['num_documents']} held-out documents ({summary['num_tokens']:,} scored "
        f"tokens)."
    )
    tables = result_tables(summary)
    pictures = [
        Picture(plot_kl_by_distance(bins), "KL to full attention by distance past the window, for each variant"),
        Picture(plot_nll_by_position(bins, window), "Loss above full attention's by position, for each variant"),
    ]
    if main is not None and "window" in summary["kl"]:
        caption = f"Below the dashed line, {describe(main)} is nearer to full attention than the window alone."
        alt = f"KL of each document, {'AHN' if main == 'ahn' else label(main)} against window"
        pictures.append(Picture(plot_documents(documents, main), alt, caption, True))
        tables.append(documents_table(documents, main))
    tables += pair_tables(summary["recovered"])
    if summary["bytes"] is not None:
        tables.append(bytes_table(summary["bytes"]))
    return [Section(headline(summary), lead, _tiles(summary), tables, pictures, note=_note(summary))]


def headline(summary: dict[str, Any]) -> str:
    """What was found, in a line: against the window, and against the control."""
    main = main_variant(summary["kl"])
    found, control = summary["recovered"].get(main), all_controls(summary).get(main)
    if found is None:
        return "KL and perplexity past the window"
    interval, subject = found["difference_ci95"], describe(main)
    if interval is not None and interval[1] < 0:
        return f"{subject[0].upper()}{subject[1:]} makes the window worse: KL up by {-found['share']:.1%}"
    if interval is not None and interval[0] <= 0:
        return f"No difference shown between {subject} and the window alone"
    change = f"With {subject}, the window's KL to full attention changes by {-found['share']:+.1%}"
    for wider in (rival for rival in found.get("against", ()) if parse_variant(rival).kind == "wider"):
        change += f" (a {label(wider)}: {-summary['recovered'][wider]['share']:+.1%})"
    if control is None or foreign_row(main) not in control["recovered"]:
        return f"{change} (no control)"
    own, foreign = (-control["recovered"][row]["share"] for row in (main, foreign_row(main)))
    if control["num_tokens"] == summary["num_tokens"]:
        return f"{change}, with another document's memory by {foreign:+.1%}"
    return f"{change}; where the control reaches by {own:+.1%}, with another document's memory by {foreign:+.1%}"


def format_summary(summary: dict[str, Any]) -> str:
    """The suite's part of report.json as a few lines for a terminal."""
    kl, window = summary["kl"], summary["window"]
    lines = [
        f"{summary['num_documents']} held-out documents, {summary['num_tokens']:,} tokens past "
        f"W = {window['lossless_budget']} (S = {window['num_sink_tokens']}, R = {window['window_size']})",
        f"{'attention':<48}{'KL to full':>12}{'perplexity':>12}",
    ]
    lines += [_line(label(variant), kl.get(variant, 0.0), value) for variant, value in summary["ppl"].items()]
    lines += [_line(name, control["kl"][row], control["ppl"][row]) for row, name, control in control_rows(summary)]
    lines += [f"{tile.value} {tile.caption}" for tile in _tiles(summary)]
    return "\n".join([*lines, *_absent_control(summary), *_partial_control(summary)])


def _line(name: str, kl: float, perplexity: float) -> str:
    return f"{name:<48}{kl:>12.4f}{perplexity:>12.3f}"


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    main = main_variant(summary["kl"])
    tiles, control = [], all_controls(summary).get(main)
    if main in summary["recovered"]:
        what = f"KL to full attention with {describe(main)} than with the window alone"
        tiles.append(_change(summary["recovered"][main], what))
    if control is not None and foreign_row(main) in control["recovered"]:
        what = "with another document's memory in its place, which knows nothing of the text"
        if control["num_tokens"] < summary["num_tokens"]:
            own = control["recovered"][main]["share"]
            what += f", on {control['num_tokens']:,} tokens, on which the own memory has {_amount(own)}"
        tiles.append(_change(control["recovered"][foreign_row(main)], what))
    if control is not None:
        interval = format_interval(control["difference_ci95"], "+.4f")
        what = "nats per token that another document's memory adds to the KL with the text's own; 95 % interval"
        tiles.append(Tile(f"{control['difference']:+.4f}", f"{what} {interval}"))
    return tiles


def _change(found: dict[str, Any], what: str) -> Tile:
    """A share of the window's KL, as what is less or more of it."""
    bounds, sign = found["share_ci95"], 1 if found["share"] >= 0 else -1
    if bounds is not None:
        bounds = sorted(sign * bound for bound in bounds)
    amount, direction = _amount(found["share"]).split(" ")
    return Tile(amount, f"{direction} {what}; 95 % interval {format_interval(bounds, '.1%')}")


def _amount(share: float) -> str:
    return f"{abs(share):.1%} {'less' if share >= 0 else 'more'}"


def _note(summary: dict[str, Any]) -> str:
    notes = [INTERVALS, *_absent_control(summary), *_partial_control(summary), *_about_retained(summary)]
    controls = all_controls(summary)
    if controls:
        names = "; ".join(label(foreign_row(variant)) for variant in controls)
        notes.append(
            f"{names}: the document is read with the memory that another document of the folder has at the "
            "same position (the next that is long enough, else the longest); what that gains over the window is "
            "adaptation to reading with a window, not memory of the text."
        )
    if summary["rounding_kl"] is not None:
        notes.append(
            f"Rounding in the model's dtype: full attention that reads the first piece in other parts has a KL of "
            f"{summary['rounding_kl']:.2g} nats per token to itself; all KLs have about as much from rounding alone."
        )
    return " ".join(notes)


def _about_retained(summary: dict[str, Any]) -> list[str]:
    kinds, past, notes = _kinds(summary["kl"]), summary["past_largest_budget"], []
    if past is not None and not past["num_tokens"]:
        notes.append(
            f"No scored token lies past the first {past['first_position']:,}, the most that one of the variants keeps: "
            f"for it, nothing was lost yet; give longer documents."
        )
    if any(parse_variant(variant).kind == "retained" for variant in all_controls(summary)):
        notes.append(
            "Where tokens are retained, another document's memory is its retained tokens, at the positions that they "
            "have there, and its cells' state; sinks and window are the text's own."
        )
    if "oracle" in kinds:
        notes.append(
            f"{label(next(v for v in summary['kl'] if parse_variant(v).kind == 'oracle'))}: chosen by the attention "
            f"that the text's later queries give under full attention, which nothing that reads a text as it comes can "
            f"know; a bound for a choice by one score a token, and no result of this model."
        )
    return notes


def _kinds(rows: Collection[Row]) -> set[str]:
    return {parse_variant(row).kind for row in rows}


def _absent_control(summary: dict[str, Any]) -> list[str]:
    main = main_variant(summary["kl"])
    if main is None or main in all_controls(summary):
        return []
    return ["No control: --data has no second document that is long enough to lend its memory."]


def _partial_control(summary: dict[str, Any]) -> list[str]:
    counts = {control["num_tokens"] for control in all_controls(summary).values()} - {summary["num_tokens"]}
    return [
        f"Other documents are too short for some: the control has {count:,} of the "
        f"{summary['num_tokens']:,} tokens, and is compared over those."
        for count in sorted(counts)
    ]
