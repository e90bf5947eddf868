"""Suite `heldout` in the report and on the terminal."""

from collections.abc import Sequence
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.heldout.plots import plot_documents, plot_kl_by_distance, plot_nll_by_position
from pipeline.evaluation.heldout.summary import Totals, bin_positions, sum_documents
from pipeline.evaluation.suite import Picture, Record, Section, Table, Tile
from pipeline.evaluation.variant_style import label

INTERVALS = (
    "Intervals: 95 %, paired bootstrap over documents, 10,000 draws; not defined for fewer than three documents, "
    "where documents do not differ, and where a draw of documents loses nothing."
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
    own, foreign = (-control["recovered"][row]["share"] for row in ("ahn", "foreign"))
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
    control = summary["control"]
    lines += [_line(name, control["kl"][row], control["ppl"][row]) for row, name in _control_rows(summary).items()]
    lines += [f"{tile.value} {tile.caption}" for tile in _tiles(summary)]
    return "\n".join([*lines, *_absent_control(summary), *_partial_control(summary)])


def _line(name: str, kl: float, perplexity: float) -> str:
    return f"{name:<48}{kl:>12.4f}{perplexity:>12.3f}"


def _rows(summary: dict[str, Any]) -> Table:
    control, kl = summary["control"], summary["kl"]
    rows = [
        _row(label(v), f"{kl[v]:.4f}" if v in kl else "0", perplexity, summary["recovered"].get(v))
        for v, perplexity in summary["ppl"].items()
    ]
    for row, name in _control_rows(summary).items():
        found = control["recovered"].get(row)
        rows.append(_row(name, f"{control['kl'][row]:.4f}", control["ppl"][row], found))
    header = ["attention", "KL to full (nats)", "perplexity", "KL below the window's", "95 % interval"]
    return Table(header, rows, emphasised=[i for i, variant in enumerate(summary["ppl"]) if variant == "ahn"])


def _control_rows(summary: dict[str, Any]) -> dict[Row, str]:
    """Rows of the control by their names: where it reaches fewer tokens than were scored, others over those as well."""
    control = summary["control"]
    if control is None:
        return {}
    if control["num_tokens"] == summary["num_tokens"]:
        return {"foreign": label("foreign")}
    where = f"on {control['num_tokens']:,} tokens"
    return {row: f"{label(row)}, {where}" for row in ("window", "ahn", "foreign") if row in control["kl"]}


def _row(name: str, kl: str, perplexity: float, found: dict[str, Any] | None) -> list[str]:
    below = ("", "") if found is None else (f"{found['share']:.1%}", _interval(found["share_ci95"], ".1%"))
    return [name, kl, f"{perplexity:.3f}", *below]


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    tiles, control = [], summary["control"]
    if "ahn" in summary["recovered"]:
        tiles.append(
            _change(summary["recovered"]["ahn"], "KL to full attention with the AHN than with the window alone")
        )
    if control is not None and "foreign" in control["recovered"]:
        what = "with another document's memory in its place, which knows nothing of the text"
        if control["num_tokens"] < summary["num_tokens"]:
            own = control["recovered"]["ahn"]["share"]
            what += f", on {control['num_tokens']:,} tokens, on which the own memory has {_amount(own)}"
        tiles.append(_change(control["recovered"]["foreign"], what))
    if control is not None:
        interval = _interval(control["difference_ci95"], "+.4f")
        what = "nats per token that another document's memory adds to the KL with the text's own; 95 % interval"
        tiles.append(Tile(f"{control['difference']:+.4f}", f"{what} {interval}"))
    return tiles


def _change(found: dict[str, Any], what: str) -> Tile:
    """A share of the window's KL, as what is less or more of it."""
    bounds, sign = found["share_ci95"], 1 if found["share"] >= 0 else -1
    if bounds is not None:
        bounds = sorted(sign * bound for bound in bounds)
    amount, direction = _amount(found["share"]).split(" ")
    return Tile(amount, f"{direction} {what}; 95 % interval {_interval(bounds, '.1%')}")


def _amount(share: float) -> str:
    return f"{abs(share):.1%} {'less' if share >= 0 else 'more'}"


def _note(summary: dict[str, Any]) -> str:
    notes = [INTERVALS, *_absent_control(summary), *_partial_control(summary)]
    if summary["control"]:
        notes.append(
            f"{label('foreign')}: the document is read with the memory that another document of the folder has at the "
            "same position (the next that is long enough, else the longest); what that gains over the window is "
            "adaptation to reading with a window, not memory of the text."
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


def _partial_control(summary: dict[str, Any]) -> list[str]:
    control = summary["control"]
    if control is None or control["num_tokens"] == summary["num_tokens"]:
        return []
    return [
        f"Other documents are too short for some: the control has {control['num_tokens']:,} of the "
        f"{summary['num_tokens']:,} tokens, and is compared over those."
    ]


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
