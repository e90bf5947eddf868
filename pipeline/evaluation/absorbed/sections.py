"""Suite `absorbed` in the report."""

from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.config import AbsorbedConfig
from pipeline.evaluation.absorbed.plots import label, plot_distances
from pipeline.evaluation.needles.sections import format_score
from pipeline.evaluation.suite import Picture, Section, Table, Tile


def make_section(summary: dict[str, Any], config: AbsorbedConfig, window: WindowSpec) -> Section:
    """The picture, and a table of each number by distance."""
    lead = (
        f"{config.documents} documents of {config.facts} facts each, read once; the same questions after "
        f"{min(config.windows)} to {max(config.windows)} windows of {window.window_size:,} tokens of other text, when "
        f"every fact has been evicted."
    )
    note = (
        "Log-probability, and share of tokens that are the likeliest: of the right answer's tokens, given those "
        "before. Recall: all of them are, so that greedy decoding gives the answer. Recovered: (variant - window) / "
        "(full - window). Another document's memory: the state of the next document's memory at the same distance, "
        "beside the window of the own. Intervals: 95 %, paired bootstrap over documents."
    )
    picture = Picture(plot_distances(summary), "Log-probability of the answers by distance from the document")
    variants, shares = summary["variants"], summary["recovered"]
    tables = [
        _by_distance(variants, "log_prob", ".3f", "Log-probability of the answers (nats per token)"),
        _by_distance(variants, "recall", ".1%", "Recall"),
        _by_distance(variants, "top1", ".1%", "Likeliest tokens"),
    ]
    if shares:
        tables.insert(1, _by_distance(shares, "log_prob", ".1%", "Log-probability recovered"))
        tables.append(_by_distance(shares, "recall", ".1%", "Recall recovered"))
    return Section("Questions about an absorbed document", lead, _tiles(summary), tables, [picture], note=note)


def _by_distance(rows: dict[str, list[dict[str, Any]]], name: str, style: str, caption: str) -> Table:
    distances = [found["windows"] for found in next(iter(rows.values()))]
    cells = [[label(row), *(format_score(at, name, style) for at in found)] for row, found in rows.items()]
    header = ["attention", *(f"{distance} window{'s' * (distance > 1)}" for distance in distances)]
    return Table(header, cells, caption, [i for i, row in enumerate(rows) if row == "ahn"])


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    shares = summary["recovered"].get("ahn", [])
    if not shares:
        return []
    return [
        Tile(
            format_score(at, "log_prob", ".1%"),
            f"of the log-probability that the window loses, recovered after {at['windows']} "
            f"window{'s' * (at['windows'] > 1)}",
        )
        for at in (shares[0], shares[-1])[: len(shares)]
    ]
