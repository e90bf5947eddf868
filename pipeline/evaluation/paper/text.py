"""The list of the paper's tables and figures as plain text and as Markdown."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.evaluation.paper.items import ITEMS, PaperItem
from pipeline.evaluation.suite import Table

INTRODUCTION = (
    "For each table and figure of the AHN paper (arXiv 2510.07318 v2): what redraws it on a GPU cluster, what does so "
    "scaled down on two CPU cores, with SmolLM2-135M and the demo's memory, and what that gave where it was run. The "
    "commands on GPUs have not been run here. A scaled-down figure says that the way is whole, not how good a memory "
    "is."
)
MISSING = "Scaled down: no result here yet; run the commands above."


def as_text(root: Path) -> str:
    """For a terminal; results are those under `root`."""
    return "\n".join([INTRODUCTION, *(line for item in ITEMS for line in _lines_of(item, root))])


def as_markdown(root: Path) -> str:
    """For docs/paper.md."""
    head = ["# The paper's tables and figures", "", "<!-- python launchers/paper.py --output docs/paper.md -->", ""]
    return "\n".join([*head, INTRODUCTION, *(line for item in ITEMS for line in _markdown_of(item, root))]) + "\n"


def _lines_of(item: PaperItem, root: Path) -> Iterator[str]:
    measured = _measured(item, root)
    yield from ("", "", item.title, "=" * len(item.title))
    if item.note:
        yield item.note
    for title, commands in (("On GPUs:", item.on_gpus), ("Scaled down, on two CPU cores:", item.on_cpu)):
        yield from ("", title, *(f"  $ {command}" for command in commands))
    for title, table in _titled(item, measured):
        yield from ("", title, *(f"  {line}" for line in _aligned(table)))
    if not measured:
        yield from ("", MISSING)


def _markdown_of(item: PaperItem, root: Path) -> Iterator[str]:
    measured = _measured(item, root)
    yield from ("", f"## {item.title}")
    if item.note:
        yield from ("", item.note)
    for title, commands in (("On GPUs:", item.on_gpus), ("Scaled down, on two CPU cores:", item.on_cpu)):
        yield from ("", title, "", "```", *commands, "```")
    for title, table in _titled(item, measured):
        rule = "|".join("---" for _ in table.header)
        yield from ("", title, "", f"| {' | '.join(table.header)} |", f"|{rule}|")
        yield from (f"| {' | '.join(row)} |" for row in table.rows)
    if not measured:
        yield from ("", MISSING)


def _measured(item: PaperItem, root: Path) -> list[Table]:
    tables = (measure(root) for measure in item.measures)
    return [table for table in tables if table is not None]


def _titled(item: PaperItem, measured: Sequence[Table]) -> list[tuple[str, Table]]:
    titled = [(f"{table.caption}:", table) for table in item.published]
    return [*titled, *((f"Scaled down, {table.caption}:", table) for table in measured)]


def _aligned(table: Table) -> Iterator[str]:
    rows: list[Sequence[str]] = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
