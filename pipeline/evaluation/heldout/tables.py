"""The tables of suite `heldout`."""

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.absorbed.summary import Row
from pipeline.evaluation.heldout.summary import Totals
from pipeline.evaluation.suite import Table
from pipeline.evaluation.variant_style import foreign_row, label

KIB = 1024


def all_controls(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What `summarise_control` found, by variant."""
    control = summary["control"]
    return ({} if control is None else {"ahn": control}) | summary["controls"]


def control_rows(summary: dict[str, Any]) -> list[tuple[Row, str, dict[str, Any]]]:
    """Rows of the controls, by their names, and the control that each is of: where one reaches fewer tokens than were
    scored, the window and the variant over those as well."""
    rows = []
    for variant, control in all_controls(summary).items():
        foreign = foreign_row(variant)
        if control["num_tokens"] == summary["num_tokens"]:
            rows.append((foreign, label(foreign), control))
            continue
        where = f"on {control['num_tokens']:,} tokens"
        names = [row for row in ("window", variant, foreign) if row in control["kl"]]
        rows += [(row, f"{label(row)}, {where}", control) for row in names]
    return list({name: (row, name, control) for row, name, control in rows}.values())


def result_tables(summary: dict[str, Any]) -> list[Table]:
    """All variants and controls over all scored tokens, and over those past the largest budget."""
    tables, past = [_results(summary, control_rows(summary))], summary["past_largest_budget"]
    if past is not None and past["num_tokens"]:
        caption = (
            f"The same past the first {past['first_position']:,} tokens, the most that one of the variants keeps: "
            f"{past['num_tokens']:,} tokens of {past['num_documents']} documents"
        )
        tables.append(_results(past, [], caption))
    return tables


def _results(found: dict[str, Any], controls: Sequence[tuple[Row, str, dict[str, Any]]], caption: str = "") -> Table:
    kl, recovered = found["kl"], found["recovered"]
    header = ["attention", "KL to full (nats)", "perplexity", "KL below the window's", "95 % interval"]
    header.append("median of documents")

    def row(name: str, value: str, perplexity: float, share: dict[str, Any] | None) -> list[str]:
        cells = [name, value, f"{perplexity:.3f}"]
        if share is None:
            return cells + [""] * (len(header) - len(cells))
        cells += [f"{share['share']:.1%}", format_interval(share["share_ci95"], ".1%"), f"{share['median_share']:.1%}"]
        return cells

    rows = [row(label(v), f"{kl[v]:.4f}" if v in kl else "0", x, recovered.get(v)) for v, x in found["ppl"].items()]
    rows += [
        row(name, f"{of['kl'][variant]:.4f}", of["ppl"][variant], of["recovered"].get(variant))
        for variant, name, of in controls
    ]
    return Table(header, rows, caption, emphasised=[i for i, variant in enumerate(found["ppl"]) if variant == "ahn"])


def pair_tables(recovered: dict[str, dict[str, Any]]) -> list[Table]:
    """Each variant that retains tokens beside others that keep as many; no table where there is none."""
    rows = [
        [label(variant), label(rival), f"{pair['documents']} of {pair['of']}", f"{pair['difference']:+.4f}",
         format_interval(pair["difference_ci95"], "+.4f")]
        for variant, found in recovered.items()
        for rival, pair in found.get("against", {}).items()
    ]  # fmt: skip
    header = [
        "attention",
        "compared with",
        "documents with the lower KL",
        "KL of the other is higher by",
        "95 % interval",
    ]
    return [Table(header, rows, "In pairs, nats per token")] if rows else []


def documents_table(documents: Sequence[Totals], main: Row) -> Table:
    """Document by document."""
    rows = [
        [d.document, f"{d.tokens:,}", *(f"{d.kl[v] / d.tokens:.4f}" for v in ("window", main)),
         "-" if (share := d.recovered(main)) is None else f"{share:.1%}"]
        for d in documents
    ]  # fmt: skip
    name = "AHN" if main == "ahn" else label(main)
    header = ["document", "tokens", "KL window", f"KL {name}", "KL below the window's"]
    return Table(header, rows, caption=f"All {len(documents)} documents", is_folded=True)


def bytes_table(counted: dict[str, dict[str, int | None]]) -> Table:
    """What each variant keeps of a text, once tokens have left the window."""
    rows = []
    for variant, found in counted.items():
        if found["tokens"] is None:
            rows.append([label(variant), "all", "grows", "0", "0", "grows"])
            continue
        parts = [found[name] for name in ("lossless_bytes", "side_bytes", "state_bytes")]
        rows.append([label(variant), f"{found['tokens']:,}", *(f"{n / KIB:,.2f}" for n in (*parts, sum(parts)))])
    header = ["attention", "tokens kept", "keys and values (KiB)", "gates and scores (KiB)", "state (KiB)", "all (KiB)"]
    return Table(header, rows, "Kept in each layer with full attention, as it lies in the cache")


def format_interval(bounds: Sequence[float] | None, style: str) -> str:
    """Its bounds, or that there are none."""
    return "not defined" if bounds is None else f"{bounds[0]:{style}} to {bounds[1]:{style}}"
