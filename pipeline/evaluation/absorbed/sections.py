"""Suite `absorbed` in the report."""

from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.config import AbsorbedConfig
from pipeline.evaluation.absorbed.plots import plot_distances
from pipeline.evaluation.needles.sections import INTERVALS, format_score
from pipeline.evaluation.suite import Picture, Section, Table, Tile
from pipeline.evaluation.variant_style import describe, foreign_row, label, main_variant


def make_section(summary: dict[str, Any], config: AbsorbedConfig, windows: list[int], window: WindowSpec) -> Section:
    """The picture, and a table of each number by distance."""
    lead = (
        f"{config.documents} documents of {config.facts} facts each, read once; the same questions after "
        f"{min(windows)} to {max(windows)} windows of {window.window_size:,} tokens of other text, when "
        f"every fact has been evicted."
    )
    note = (
        "Log-probability, and share of tokens that are the likeliest: of the right answer's tokens, given those "
        "before. Recall: all of them are, so that greedy decoding gives the answer. Recovered: (variant - window) / "
        "(full - window); without an interval it says nothing, as of other documents the window may lose nothing. "
        "Another document's memory: all is read with the memory that the next document has at the same place, and "
        "nothing of the own is written; what that gains is adaptation to a window. "
        f"{INTERVALS.format(units='documents')}"
    )
    picture = Picture(plot_distances(summary), "Log-probability of the answers by distance from the document")
    variants, shares = summary["variants"], summary["recovered"]
    tables = [
        _by_distance(variants, "log_prob", ".3f", "Log-probability of the answers (nats per token)"),
        _by_distance(variants, "recall", ".1%", "Recall"),
        _by_distance(variants, "top1", ".1%", "Likeliest tokens", is_folded=True),
    ]
    if shares:
        tables.insert(1, _by_distance(shares, "log_prob", ".1%", "Log-probability recovered"))
        tables.append(_by_distance(shares, "recall", ".1%", "Recall recovered", is_folded=True))
    if summary["controls"]:
        caption = "Log-probability that the own memory adds to another document's (nats per token)"
        tables.insert(1 + bool(shares), _by_distance(summary["controls"], "difference", "+.3f", caption))
    return Section("Questions about an absorbed document", lead, _tiles(summary), tables, [picture], note=note)


def _by_distance(
    rows: dict[str, list[dict[str, Any]]], name: str, style: str, caption: str, is_folded: bool = False
) -> Table:
    distances = [found["windows"] for found in next(iter(rows.values()))]
    cells = [[label(row), *(format_score(at, name, style) for at in found)] for row, found in rows.items()]
    header = ["attention", *(f"{distance} window{'s' * (distance > 1)}" for distance in distances)]
    return Table(header, cells, caption, [i for i, row in enumerate(rows) if row == main_variant(rows)], is_folded)


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    """Nearest and farthest distance of which shares say something, and what another document's memory does there."""
    main = main_variant(summary["variants"])
    if main is None:
        return []
    own, foreign = (summary["recovered"].get(row, []) for row in (main, foreign_row(main)))
    told = [at for at in zip(own, foreign, strict=True) if at[0]["log_prob_ci95"] is not None]
    tiles = []
    for at, control in told if len(told) < 2 else (told[0], told[-1]):
        share, foreign_share = (format_score(of_row, "log_prob", ".1%") for of_row in (at, control))
        after = f"{at['windows']} window{'s' * (at['windows'] > 1)}"
        what = f"of the log-probability that the window loses, regained with {describe(main)}"
        tiles.append(Tile(share, f"{what} after {after}; with another document's memory {foreign_share}"))
    return tiles
