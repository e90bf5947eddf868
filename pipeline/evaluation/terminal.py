"""Sections of a report as plain text: what a terminal shows at the end of an evaluation, and summary.txt."""

from collections.abc import Sequence

from pipeline.evaluation.suite import Section, Table


def format_sections(sections: Sequence[Section]) -> str:
    """Titles, large figures and tables; pictures, texts and tables that a page folds are left out."""
    return "\n\n".join(_format_section(section) for section in sections)


def _format_section(section: Section) -> str:
    parts = [section.title, section.lead, *(f"{tile.value} {tile.caption}" for tile in section.tiles)]
    parts += [_format_table(table) for table in section.tables if not table.is_folded]
    return "\n".join(part for part in parts if part)


def _format_table(table: Table) -> str:
    rows = [[str(cell) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([*([table.caption] if table.caption else []), *lines])
