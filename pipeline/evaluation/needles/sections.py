"""Suite `needles` in the report."""

from collections.abc import Sequence
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.evaluation.needles.plots import plot_grid
from pipeline.evaluation.published import niah_table
from pipeline.evaluation.suite import Picture, Record, Section, Table, Tile
from pipeline.evaluation.variant_style import describe, label, main_variant

PLACES = {"evicted": "evicted", "in_window": "in the window"}
SCORES = ("recall", "log-probability (nats)", "likeliest tokens")
INTERVALS = (
    "Intervals: 95 %, paired bootstrap over {units}, stretched for few of them, and Clopper-Pearson where a share is "
    "the same for all {units}. None of fewer than three {units}, nor of a recovered share that all have alike."
)


def make_section(
    summary: dict[str, Any], records: Sequence[Record], window: WindowSpec, max_positions: int | None
) -> Section:
    """The numbers, the heat map, task by task, and what was published."""
    variants = list(summary["variants"])
    tasks = list(summary["variants"][variants[0]]["evicted"]["tasks"])
    lengths = sorted({record["length"] for record in records})
    lead = (
        f"Sentences hidden in prompts of {lengths[0]:,} to {lengths[-1]:,} tokens and asked for at the end, "
        f"{len(records) // len(variants)} prompts ({', '.join(task.replace('_', ' ') for task in tasks)}). Those that "
        f"the window of {window.window_size:,} tokens still holds are counted apart from the evicted ones, whatever a "
        f"variant keeps of those. "
        f"{label('memory_off')} answers as {label('window')} does, and is not asked."
    )
    note = (
        "Evicted: at the prompt's last token, no token of any sentence that names the answer is in the window or a "
        "sink; so a variable is evicted when the assignment that takes its value is evicted too. Recall: share of the "
        "answers that a greedy continuation of the prompt has as whole words. Log-probability, and share of tokens "
        "that are the likeliest: of the right answer's tokens, given those before. Recovered: (variant - window) / "
        "(full - window); without an interval it says nothing, as of other prompts the window may lose nothing. "
        f"{INTERVALS.format(units='prompts')}"
    )
    if summary["lengths_beyond_trained_positions"]:
        beyond = ", ".join(f"{length:,}" for length in summary["lengths_beyond_trained_positions"])
        note += f" Longer than the base's {max_positions:,} positions: {beyond} tokens."
    caption = (
        "Mean over all tasks, nats. Framed: all needles are in the window. With several needles, the depth is that of "
        "the first."
    )
    picture = Picture(plot_grid(records, variants), "Log-probability of the answers by depth and length", caption)
    tables = [_variants(summary, place) for place in PLACES]
    tables += [_tasks(summary, place, tasks) for place in PLACES] + [niah_table()]
    return Section("Needles in a haystack", lead, _tiles(summary), tables, [picture], note=note)


def format_score(found: dict[str, Any], name: str, style: str) -> str:
    """A number and its interval, as far as they are defined."""
    if found[name] is None:
        return "-"
    bounds = found[f"{name}_ci95"]
    return f"{found[name]:{style}}" + ("" if bounds is None else f" [{bounds[0]:{style}}, {bounds[1]:{style}}]")


def _variants(summary: dict[str, Any], place: str) -> Table:
    header = ["attention", *SCORES]
    with_recovered = place == "evicted" and bool(summary["recovered"])
    if with_recovered:
        header += ["log-probability recovered", "recall recovered"]
    rows = []
    for variant, of_variant in summary["variants"].items():
        row = [label(variant), *_scores(of_variant[place])]
        if with_recovered:
            shares = summary["recovered"].get(variant)
            names = ("log_prob", "recall")
            row += ["", ""] if shares is None else [format_score(shares, name, ".1%") for name in names]
        rows.append(row)
    first = next(iter(summary["variants"].values()))
    caption = f"Needles {PLACES[place]}: {first[place]['num_needles']} (prompts: {first[place]['units']})"
    return Table(header, rows, caption, emphasised=[i for i, v in enumerate(summary["variants"]) if v == "ahn"])


def _tasks(summary: dict[str, Any], place: str, tasks: Sequence[str]) -> Table:
    rows = []
    for task in tasks:
        for variant, of_variant in summary["variants"].items():
            found = of_variant[place]["tasks"][task]
            counts = [str(found[name]) for name in ("num_needles", "units")]
            rows.append([task.replace("_", " "), label(variant), *counts, *_scores(found)])
    header = ["task", "attention", "needles", "prompts", *SCORES]
    return Table(header, rows, f"Task by task: needles {PLACES[place]}", is_folded=True)


def _scores(found: dict[str, Any]) -> list[str]:
    return [
        format_score(found, name, style) for name, style in (("recall", ".1%"), ("log_prob", ".3f"), ("top1", ".1%"))
    ]


def _tiles(summary: dict[str, Any]) -> list[Tile]:
    tiles, main = [], main_variant(summary["variants"])
    if main is not None:
        found = summary["variants"][main]["evicted"]
        what = f"of evicted needles recalled with {describe(main)}"
        tiles.append(Tile(format_score(found, "recall", ".1%"), what))
    if main in summary["recovered"] and summary["recovered"][main]["log_prob_ci95"] is not None:
        share = format_score(summary["recovered"][main], "log_prob", ".1%")
        what = f"of the log-probability that evicted needles lose, regained with {describe(main)}"
        tiles.append(Tile(share, f"{what} (no control here; questions to absorbed documents have one)"))
    return tiles
