"""The statistics of a packed folder as plain text."""

from pipeline.byte_counts import round_bytes
from pipeline.errors import escape_controls

MAX_SOURCES = 40


def format_stats(stats: dict) -> str:
    """Tables of what `collect_stats` returns."""
    rows = _rows(stats)
    blocks = [
        f"{stats['packing'].get('method', '')} packing, samples of up to {stats['seq_len']:,} tokens, "
        f"fingerprint {stats['fingerprint'][:12]}",
        _table([_amounts(row) for row in rows]),
        _table([_shares(row) for row in rows]),
        "length of documents in tokens (a cut one counts whole)\n" + _table([_lengths(row) for row in rows]),
        _windows(stats["total"]),
    ]
    lost = [line for row in stats["sources"][:MAX_SOURCES] for line in _dropped(row)]
    return "\n\n".join([*filter(None, blocks), "\n".join(lost) if lost else "nothing was dropped"])


def _rows(stats: dict) -> list[dict]:
    sources = stats["sources"]
    shown = sources[:MAX_SOURCES]
    return shown if len(sources) == 1 else [*shown, stats["total"]]


def _amounts(row: dict) -> dict[str, str]:
    names = {"samples": "samples", "tokens": "tokens", "documents": "documents"}
    names |= {"cut_documents": "cut", "duplicate_documents": "duplicates"}
    return {
        "source": row["name"],
        "text": round_bytes(row["text_bytes"]),
        **{title: f"{row[name]:,}" for name, title in names.items()},
    }


def _shares(row: dict) -> dict[str, str]:
    return {
        "source": row["name"],
        "epoch weight": "-" if row["weight"] is None else f"{row['weight']:g}",
        "of the tokens": f"{row['share_of_tokens']:.1%}",
        "bytes per token": f"{row['bytes_per_token']:.2f}",
        "samples filled": f"{row['packing_efficiency']:.2%}",
        "documents cut": f"{row['cut_share']:.2%}",
        "supervised": "-" if row["supervised_share"] is None else f"{row['supervised_share']:.1%}",
    }


def _lengths(row: dict) -> dict[str, str]:
    lengths = row["document_lengths"]
    quantiles = {name: f"{value:,}" for name, value in lengths["quantiles"].items()}
    return {"source": row["name"], "mean": f"{lengths['mean']:,.0f}", **quantiles}


def _windows(total: dict) -> str:
    """A piece is what the model sees as one document: only pieces longer than the window evict tokens."""
    documents, pieces = total["document_lengths"], total["piece_lengths"]
    longer = {row["window"]: row for row in pieces["longer_than"]}
    rows = []
    for row in documents["longer_than"]:
        piece = longer.get(row["window"], {"number": 0, "tokens": 0})
        rows.append(
            {
                "window": f"{row['window']:,}",
                "documents": f"{row['number']:,}",
                "of the documents": f"{row['number'] / documents['number']:.1%}",
                "pieces": f"{piece['number']:,}",
                "of the tokens": f"{piece['tokens'] / pieces['tokens']:.1%}",
            }
        )
    title = "documents longer than a window, and pieces of them as they lie in the samples (with their tokens)"
    return f"{title}\n{_table(rows)}" if rows else "no document is longer than 128 tokens"


def _dropped(row: dict) -> list[str]:
    lines = []
    for kind, reasons in row["dropped"].items():
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()) if count)
        if counts:
            lines.append(escape_controls(f"{row['name']}: {kind} dropped: {counts}"))
    return lines


def _table(rows: list[dict[str, str]]) -> str:
    """Columns under their titles: the first to the left, the others to the right. Rows may lack the last columns."""
    titles = max(rows, key=len).keys()
    widths = {title: max(len(title), *(len(row.get(title, "")) for row in rows)) for title in titles}
    first = next(iter(titles))
    lines = [dict(zip(titles, titles, strict=True)), *rows]
    return "\n".join(
        "  ".join(
            line.get(title, "").ljust(width) if title == first else line.get(title, "").rjust(width)
            for title, width in widths.items()
        ).rstrip()
        for line in lines
    )
